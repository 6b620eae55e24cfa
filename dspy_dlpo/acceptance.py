"""Acceptance: candidate against incumbent on the same examples, as few of them as the decision needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist, fmean, variance

_PRIOR_WEIGHT = 1.0


def looks(population: int, first: int) -> list[int]:
    """Return after how many examples to look: `first`, then each time twice as many, up to the whole population."""
    sizes = []
    size = max(first, 1)
    while size < population:
        sizes.append(size)
        size *= 2
    return [*sizes, population] if population else []


def verdict(
    differences: Sequence[float], population: int, threshold: float, width: float, confidence: float, num_looks: int
) -> bool | None:
    """Decide whether the mean paired difference over a population exceeds a threshold, if that is sure already.

    Args:
        differences: Candidate's score minus incumbent's, for examples drawn from the population without replacement.
        population: Number of examples from which they were drawn.
        threshold: What the mean must exceed.
        width: Width of the score range; differences are in [-width, width].
        confidence: One minus the chance, over all looks together, of a decision that the whole population would turn.
        num_looks: How often this question is asked of the same comparison.

    Returns:
        True or False if sure, None if not. Exact when every example of the population is there.

    The bound is the normal one with finite-population correction, its error level shared out among the looks
    (Bonferroni); so that a short run of equal differences does not look certain, one imagined difference of half the
    width joins the variance. It is approximate for small samples. After Korattikara, Chen and Welling, arXiv
    1304.5299; Waudby-Smith and Ramdas, arXiv 2010.09686, have bounds that are exact and pay far more.
    """
    size = len(differences)
    mean = fmean(differences)
    if size >= population:
        return mean > threshold
    spread = ((size - 1) * variance(differences) if size > 1 else 0.0) + _PRIOR_WEIGHT * (width / 2) ** 2
    error = math.sqrt(spread / size / size * (1 - size / population))
    margin = NormalDist().inv_cdf(1 - (1 - confidence) / num_looks) * error
    if mean - margin > threshold:
        return True
    if mean + margin <= threshold:
        return False
    return None


def decide(
    differences: Callable[[Sequence[str]], list[float]],
    examples: Sequence[str],
    *,
    threshold: float,
    width: float,
    confidence: float,
    first_look: int,
) -> tuple[list[float], bool]:
    """Pay for examples until it is decided whether the mean paired difference over all of them exceeds the threshold.

    Args:
        differences: Runs candidate and incumbent on examples and returns the paired differences.
        examples: All examples of the comparison, in random order.
        threshold: What the mean must exceed.
        width: Width of the score range.
        confidence: See `verdict`.
        first_look: Examples before the first look. The looks depend on the settings alone, never on threads.

    Returns:
        The differences paid for, in order, and the decision.
    """
    paid: list[float] = []
    sizes = looks(len(examples), first_look)
    for size in sizes:
        paid += differences(examples[len(paid) : size])
        decision = verdict(paid, len(examples), threshold, width, confidence, len(sizes))
        if decision is not None:
            return paid, decision
    return paid, False
