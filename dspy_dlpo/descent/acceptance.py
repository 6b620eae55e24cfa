"""Acceptance: candidate against incumbent on the same examples, as few of them as the decision needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import NormalDist, fmean

_LOOKS_PER_DOUBLING = 1.4
_PRIOR_SHARE = 0.25
_PRIOR_SQUARES = 2


def looks(population: int, first: int) -> list[int]:
    """Return after how many examples to look: `first`, then in growing steps up to the whole population.

    Each look is a round of waiting, so there are few: 8 for a population of 190 and `first=8`. Their square roots are
    evenly spaced; as many looks in a constant ratio paid for more examples at the same error.
    """
    if not population:
        return []
    first = max(first, 1)
    count = math.ceil(_LOOKS_PER_DOUBLING * math.log2(population / first))
    start, end = math.sqrt(first), math.sqrt(population)
    sizes = {round((start + (end - start) * number / count) ** 2) for number in range(count)}
    return [*sorted(sizes), population]


def student_quantile(level: float, freedom: int) -> float:
    """Return the quantile of Student's distribution at a level of at least 0.5, by the approximation of Wallace.

    Wallace (1959), Bounds on normal approximations to Student's and the chi-square distributions, Annals of
    Mathematical Statistics 30(4).

    >>> [round(student_quantile(0.95, freedom), 2) for freedom in (9, 30, 100)]  # As in tables.
    [1.83, 1.7, 1.66]
    """
    normal = NormalDist().inv_cdf(level) * (8 * freedom + 3) / (8 * freedom + 1)
    return math.sqrt(freedom * math.expm1(normal**2 / freedom))


def verdict(
    differences: Sequence[float], population: int, threshold: float, width: float, confidence: float
) -> bool | None:
    """Decide whether the mean paired difference over a population exceeds a threshold, if that is sure enough already.

    Args:
        differences: Candidate's score minus incumbent's, for examples drawn from the population without replacement.
        population: Number of examples from which they were drawn.
        threshold: What the mean must exceed.
        width: Width of the score range; differences are in [-width, width].
        confidence: One minus the chance of a decision that the whole population would turn.

    Returns:
        True or False if sure, None if not. Exact when every example of the population is there; False if there is none.

    The sum of the differences not yet paid is foretold by a normal model, and the test stops when the chance that they
    turn the decision is below `1 - confidence`. Before the first example the model expects a mean difference equal to
    the threshold, as firmly as if a quarter of the population had shown it; so early luck has to be great to count.
    The variance is estimated, joined by two imagined deviations of half the width, so that a short run of equal
    differences does not look certain; hence Student's distribution.

    It assumes examples in random order and differences bounded by the width; with few examples the normal model is
    approximate. Repeated looks need no correction within the model: whenever it stops, the foretold chance of error is
    below `1 - confidence`, so the average is too. Where the true mean equals the threshold, errors are most frequent.
    The quarter was chosen by simulation, so that they stay below `1 - confidence` there too, for a confidence of at
    least 0.9 and the looks of `looks` with a first one at 5 or later (`examples.benchmarks.decisions`). A population
    whose own mean is within a hair of the threshold may well be decided wrongly, which costs that hair.

    References:
        Lan, Simon and Halperin (1982), Stochastically curtailed tests in long-term clinical trials, Sequential
        Analysis 1(3). Spiegelhalter, Freedman and Blackburn (1986), Monitoring clinical trials: conditional or
        predictive power?, Controlled Clinical Trials 7(1). Bounds without a model, which pay for far more examples:
        Waudby-Smith and Ramdas, arXiv 2006.04347.
    """
    size = len(differences)
    if size >= population:
        return size > 0 and fmean(differences) > threshold
    if not size:
        return None
    mean = fmean(differences)
    freedom = size - 1 + _PRIOR_SQUARES
    squares = math.fsum((each - mean) ** 2 for each in differences) + _PRIOR_SQUARES * (width / 2) ** 2
    prior = _PRIOR_SHARE * population
    rest = (population - size) * (size + prior) / (population + prior)
    margin = student_quantile(confidence, freedom) * math.sqrt(squares / freedom * rest) / size
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
        differences: Runs candidate and incumbent on examples and returns the paired differences. A pair that was lost
            is left out, and the population is smaller by one.
        examples: All examples of the comparison, in random order.
        threshold: What the mean must exceed.
        width: Width of the score range.
        confidence: See `verdict`.
        first_look: Examples before the first look. The looks depend on the settings alone, never on threads.

    Returns:
        The differences paid for, in order, and the decision: False if every pair was lost.
    """
    paid: list[float] = []
    for start, stop in pairwise([0, *looks(len(examples), first_look)]):
        paid += differences(examples[start:stop])
        lost = stop - len(paid)
        decision = verdict(paid, len(examples) - lost, threshold, width, confidence)
        if decision is not None:
            return paid, decision
    return paid, False
