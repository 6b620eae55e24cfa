"""Confidence intervals of a gain."""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import fmean

_RESAMPLES = 4000


def paired_interval(
    before: Sequence[float], after: Sequence[float], confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Return the confidence interval of the mean of `after - before` on the same examples.

    Percentile bootstrap over examples (Efron 1979), 4,000 seeded resamples. It says nothing about examples of another
    kind, nor of a choice among several programs made on these same examples: use examples that chose nothing.

    Args:
        before: Score of the first program on each example.
        after: Score of the second program on the same examples, in the same order.
        confidence: Coverage, in (0, 1).
        seed: Seed of the resampling.

    Returns:
        The ends of the interval, on the scale of the scores.

    Raises:
        ValueError: If the lengths differ or there are no scores.
    """
    if not before or len(before) != len(after):
        raise ValueError(f"`before` and `after` must pair up, but have {len(before)} and {len(after)} scores.")
    differences = [two - one for one, two in zip(before, after, strict=True)]
    rng = random.Random(seed)
    means = sorted(fmean(rng.choices(differences, k=len(differences))) for _ in range(_RESAMPLES))
    tail = int(_RESAMPLES * (1 - confidence) / 2)
    return means[tail], means[-1 - tail]
