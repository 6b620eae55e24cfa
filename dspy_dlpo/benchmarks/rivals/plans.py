"""How each rival's own parameters are set so that its planned metric calls fit in a budget.

Every optimiser has one number that its calls grow with in a straight line: the examples it scores candidates on. For
each choice of the other parameters that number takes what the budget leaves, and is at least 10. Among the choices that
use at least 90 % of the budget the one nearest to the optimiser's defaults is taken (sum of squared log ratios, so that
all parameters shrink alike); if none does, the one that uses most. So a small budget costs examples first, then
breadth, rounds and steps: in the simulator COPRO, GEPA and TextGrad do much better so than with 30 or 50 examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

MIN_EXAMPLES = 10
"""Fewer examples tell nothing about a candidate."""

MINIBATCH = 35
"""MIPROv2's default size of a minibatch; like its `auto` it takes minibatches where there are more than 50 examples."""

APO_SUCCESSORS = 4
"""Children of a prompt in APO's beam: two edits of it, and a paraphrase of each."""

TEXTGRAD_BATCH = 3
_MINIBATCH_ABOVE = 50
_FULL_EVAL_STEPS = 5
_BOOTSTRAP_CALLS = 5
_ENOUGH = 0.9


class BudgetTooSmall(ValueError):
    """The optimiser cannot run on so few metric calls; its cell is skipped."""


@dataclass(frozen=True)
class Plan:
    """Parameters of an optimiser that fit in a budget.

    Attributes:
        settings: Its parameters, by its own names.
        num_examples: Examples on which it scores candidates.
        metric_calls: What it will make with these at most, as far as that can be known before.
    """

    settings: Mapping[str, int]
    num_examples: int
    metric_calls: int


def nearest(
    optimizer: str,
    cost: Callable[..., tuple[int, int]],
    defaults: Mapping[str, int],
    ranges: Mapping[str, Sequence[int]],
    *,
    examples: tuple[int, int],
    max_metric_calls: int,
    bounded_by: str = "",
) -> Plan:
    """Return the plan nearest to the defaults among those that use most of the budget.

    Args:
        optimizer: Its name, for the error.
        cost: Takes the settings; returns the metric calls that do not depend on the number of examples, and those for
            each example.
        defaults: What users leave the settings at.
        ranges: What each may be.
        examples: Least and greatest number of examples.
        max_metric_calls: The budget.
        bounded_by: A setting that the number of examples may not be below.

    Raises:
        BudgetTooSmall: If not even the cheapest settings fit.
    """
    best: tuple[tuple[bool, float, float], Plan] | None = None
    cheapest = math.inf
    for values in product(*ranges.values()):
        settings = dict(zip(ranges, values, strict=True))
        fixed, each = cost(**settings)
        least = max(examples[0], settings.get(bounded_by, 0))
        cheapest = min(cheapest, fixed + each * least)
        size = min(examples[1], (max_metric_calls - fixed) // each)
        if size < least:
            continue
        calls = fixed + each * size
        distance = sum(math.log(value / defaults[name]) ** 2 for name, value in settings.items())
        wasteful = calls < _ENOUGH * max_metric_calls
        rank = (wasteful, -calls if wasteful else distance, distance)
        if best is None or rank < best[0]:
            best = rank, Plan(settings, size, calls)
    if best is None:
        raise BudgetTooSmall(
            f"`max_metric_calls` must be at least {cheapest} for {optimizer} here, but got {max_metric_calls=}."
        )
    return best[1]


@lru_cache
def copro(max_metric_calls: int, num_predictors: int, num_examples: int) -> Plan:
    """Plan COPRO: `breadth` prompts in each of `depth` rounds, every one on the same examples.

    A program of several predictors scores all earlier prompts of each predictor again in every round.
    """

    def cost(breadth: int, depth: int) -> tuple[int, int]:
        rounds = depth if num_predictors == 1 else depth * (depth + 1) // 2
        return 0, num_predictors * breadth * rounds

    return nearest(
        "copro",
        cost,
        {"breadth": 10, "depth": 3},
        {"breadth": range(2, 21), "depth": range(1, 7)},
        examples=(min(MIN_EXAMPLES, num_examples), num_examples),
        max_metric_calls=max_metric_calls,
    )


@lru_cache
def simba(max_metric_calls: int, num_examples: int) -> Plan:
    """Plan SIMBA: in each step samples and new candidates on a minibatch, in the end the winners on all examples.

    bsize x num_candidates samples and num_candidates + 1 new programs (at most one an example) a step; then the student
    and at most num_candidates winners on the whole set.
    """

    def cost(bsize: int, num_candidates: int, max_steps: int) -> tuple[int, int]:
        step = bsize * (num_candidates + min(num_candidates + 1, bsize))
        return max_steps * step, min(num_candidates, max_steps) + 1

    return nearest(
        "simba",
        cost,
        {"bsize": 32, "num_candidates": 6, "max_steps": 8},
        {"bsize": range(4, min(64, num_examples) + 1), "num_candidates": range(2, 11), "max_steps": range(1, 17)},
        examples=(min(MIN_EXAMPLES, num_examples), num_examples),
        max_metric_calls=max_metric_calls,
        bounded_by="bsize",
    )


@lru_cache
def mipro(max_metric_calls: int, num_predictors: int, num_examples: int, demos: bool) -> Plan:
    """Plan MIPROv2: bootstrapping, the student on the validation examples, and as many trials as it recommends.

    What bootstrapping takes depends on the answers; DSPy reckons with 5 calls for each candidate. `mipro_trials` plans
    again when it is known.
    """
    num_variables = num_predictors * (2 if demos else 1)

    def trials(num_candidates: int) -> int:
        return int(max(2 * num_variables * math.log2(num_candidates), 1.5 * num_candidates))

    def full(num_candidates: int) -> tuple[int, int]:
        return _BOOTSTRAP_CALLS * num_candidates, 1 + trials(num_candidates)

    def minibatch(num_candidates: int) -> tuple[int, int]:
        number = trials(num_candidates)
        return _BOOTSTRAP_CALLS * num_candidates + MINIBATCH * number, 1 + math.ceil(number / _FULL_EVAL_STEPS)

    name, defaults, ranges = "mipro" if demos else "mipro0", {"num_candidates": 6}, {"num_candidates": range(3, 19)}
    if num_examples > _MINIBATCH_ABOVE:
        sizes = (_MINIBATCH_ABOVE + 1, num_examples)
        try:
            return nearest(name, minibatch, defaults, ranges, examples=sizes, max_metric_calls=max_metric_calls)
        except BudgetTooSmall:
            num_examples = _MINIBATCH_ABOVE
    sizes = (min(MIN_EXAMPLES, num_examples), num_examples)
    return nearest(name, full, defaults, ranges, examples=sizes, max_metric_calls=max_metric_calls)


def mipro_trials(metric_calls_left: int, num_examples: int) -> int:
    """Return how many trials MIPROv2 can make, the student's own evaluation apart."""
    if not is_minibatched(num_examples):
        return metric_calls_left // num_examples - 1
    number = 0
    while (
        num_examples * (1 + math.ceil((number + 1) / _FULL_EVAL_STEPS)) + MINIBATCH * (number + 1) <= metric_calls_left
    ):
        number += 1
    return number


def is_minibatched(num_examples: int) -> bool:
    """Whether MIPROv2 tries candidates on minibatches of so many validation examples."""
    return num_examples > _MINIBATCH_ABOVE


@lru_cache
def textgrad(max_metric_calls: int, num_examples: int) -> Plan:
    """Plan TextGrad: steps on 3 examples, each checked on the validation examples and taken back if it is worse.

    The batch is that of its paper (arXiv 2406.07496, prompt optimisation), which made 12 steps; here as many as fit.
    """
    size = valset_share(max_metric_calls, num_examples)
    num_steps, least = (max_metric_calls - size) // (TEXTGRAD_BATCH + size), 2 * size + TEXTGRAD_BATCH
    if num_steps < 1:
        raise BudgetTooSmall(
            f"`max_metric_calls` must be at least {least} for textgrad here, but got {max_metric_calls=}."
        )
    size = min(num_examples, (max_metric_calls - TEXTGRAD_BATCH * num_steps) // (num_steps + 1))
    return Plan({"num_steps": num_steps}, size, size + num_steps * (TEXTGRAD_BATCH + size))


@lru_cache
def apo(max_metric_calls: int, num_examples: int) -> Plan:
    """Plan APO: rounds of critique, successors and bandit selection, then the beam on the validation examples.

    A round takes for each prompt of the beam a minibatch to criticise, and two pulls of the bandit, of a minibatch
    each, for it and each of its successors. The first round has one prompt. Beam 4 and 6 rounds are the paper's. What
    is met again is not paid again, so that there may be more rounds than planned.
    """

    def cost(beam: int, num_rounds: int, batch: int) -> tuple[int, int]:
        return (1 + (num_rounds - 1) * beam) * batch * (1 + 2 * (1 + APO_SUCCESSORS)), beam

    return nearest(
        "apo",
        cost,
        {"beam": 4, "num_rounds": 6, "batch": 16},
        {"beam": range(1, 7), "num_rounds": range(1, 13), "batch": range(4, 33)},
        examples=(min(MIN_EXAMPLES, num_examples), num_examples),
        max_metric_calls=max_metric_calls,
    )


def valset_share(max_metric_calls: int, num_examples: int) -> int:
    """Return on how many validation examples GEPA, TextGrad and DLPO choose: a twentieth of the budget, at least 10.

    GEPA's documentation asks for the smallest valset that still tells. With 300 calls in the simulator 15 examples did
    better for GEPA than 10, 25 or 50; for DLPO 10 and 15 were level and 50 worse.
    """
    return min(num_examples, max(MIN_EXAMPLES, max_metric_calls // 20))
