"""How often the sequential test of acceptance decides otherwise than full evaluation, and what it pays.

    python -m examples.benchmarks.decisions

A cell is a true difference, a share of discordant pairs and a temperature T. For each decision a population of paired
differences is drawn with that mean and that share, and a threshold T*ln(U) as simulated annealing draws it. A decision
is false if the mean over the whole population would turn it. All cells are run. Then those that erred most are run
again, on new numbers and ten times as often, so that the worst cell is not merely the unluckiest.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from statistics import NormalDist, fmean, variance
from typing import NamedTuple

from dspy_dlpo.descent.statistics import looks, verdict

POPULATIONS = (190, 50, 32, 20, 10)
TRUE_DIFFERENCES = tuple(step / 20 for step in range(-6, 7))
DISCORDANT = (0.1, 0.2, 0.3, 0.4, 0.5)
TEMPERATURES = (0.0, 0.02, 0.05, 0.1)
SIZES = {"right or wrong": (1.0,), "in steps of 0.2": (0.2, 0.4, 0.6, 0.8, 1.0)}
_CELLS_AGAIN = 5
_TIMES_AGAIN = 10


@dataclass(frozen=True)
class Rule:
    """When to look, given the population, and what to decide, given differences, population and threshold."""

    looks: Callable[[int], list[int]]
    verdict: Callable[[Sequence[float], int, float], bool | None]


class Cell(NamedTuple):
    """A setting of the simulation: true mean difference, share of pairs that differ, temperature of annealing."""

    difference: float
    discordant: float
    temperature: float


@dataclass(frozen=True)
class Row:
    """What a rule did over all cells.

    Attributes:
        scores: Kind of scores.
        population: Number of examples.
        rule: Name of the rule.
        decisions: Number of decisions in all cells together, run once.
        paid: Mean share of examples paid.
        rounds: Mean number of looks. Each is a round of waiting for the program.
        wrong: Share of false decisions.
        worst: Share of false decisions in the worst cell, run again.
        interval: Its 95 % Wilson interval.
        cell: The worst cell.
    """

    scores: str
    population: int
    rule: str
    decisions: int
    paid: float
    rounds: float
    wrong: float
    worst: float
    interval: tuple[float, float]
    cell: Cell


def sequential_test(first: int, confidence: float) -> Rule:
    """Return the rule that a run uses."""
    return Rule(
        lambda population: looks(population, first),
        lambda differences, population, threshold: verdict(differences, population, threshold, 1.0, confidence),
    )


def normal_bound(first: int, confidence: float) -> Rule:
    """Return the yardstick: a rough normal bound with finite-population correction.

    It looks each time at twice as many examples, and the looks share the error level equally. One imagined deviation of
    half the width joins the variance.
    """

    def doubling(population: int) -> list[int]:
        count = math.ceil(math.log2(max(population / first, 1)))
        return [*(first * 2**number for number in range(count)), population]

    def bound(differences: Sequence[float], population: int, threshold: float) -> bool | None:
        size, mean = len(differences), fmean(differences)
        squares = (size - 1) * variance(differences) + 1 / 4
        normal = NormalDist().inv_cdf(1 - (1 - confidence) / len(doubling(population)))
        margin = normal * math.sqrt(squares * (1 - size / population)) / size
        return mean > threshold if size == population or abs(mean - threshold) > margin else None

    return Rule(doubling, bound)


RULES = {"sequential test": sequential_test, "normal bound": normal_bound}


def cells(sizes: Sequence[float]) -> list[Cell]:
    """Return the cells that are possible with differences of these sizes."""
    grid = map(Cell._make, product(TRUE_DIFFERENCES, DISCORDANT, TEMPERATURES))
    return [cell for cell in grid if abs(cell.difference) <= cell.discordant * fmean(sizes)]


def draw(rng: random.Random, cell: Cell, sizes: Sequence[float], population: int) -> tuple[list[float], float]:
    """Return the paired differences of a population, and a threshold."""
    surplus = cell.difference / fmean(sizes)
    values = [0.0, *sizes, *(-size for size in sizes)]
    gain, loss = ((cell.discordant + sign * surplus) / 2 / len(sizes) for sign in (1, -1))
    weights = [1 - cell.discordant, *[gain] * len(sizes), *[loss] * len(sizes)]
    return rng.choices(values, weights, k=population), cell.temperature * math.log(1 - rng.random())


def measure(
    rule: Rule, cell: Cell, sizes: Sequence[float], population: int, repetitions: int, seed: str
) -> tuple[float, float, float]:
    """Return the share of examples paid, the mean number of looks, and the share of false decisions.

    Every rule meets the same populations and thresholds if the seed is the same.
    """
    rng = random.Random(f"{seed}/{population}/{cell}")
    paid = rounds = wrong = 0
    for _ in range(repetitions):
        differences, threshold = draw(rng, cell, sizes, population)
        for size in rule.looks(population):
            rounds += 1
            accepted = rule.verdict(differences[:size], population, threshold)
            if accepted is not None:
                break
        paid += size
        wrong += accepted != (fmean(differences) > threshold)
    return paid / population / repetitions, rounds / repetitions, wrong / repetitions


def wilson(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share that was observed `count` times (Wilson 1927)."""
    square = NormalDist().inv_cdf(0.975) ** 2 / count
    half = math.sqrt(square * share * (1 - share) + square**2 / 4)
    return (share + square / 2 - half) / (1 + square), (share + square / 2 + half) / (1 + square)


def summarise(scores: str, population: int, name: str, rule: Rule, repetitions: int) -> Row:
    """Run all cells, then the worst ones again."""
    sizes = SIZES[scores]
    grid = cells(sizes)
    shares = [measure(rule, cell, sizes, population, repetitions, "all") for cell in grid]
    paid, rounds, wrong = map(fmean, zip(*shares, strict=True))
    suspects = sorted(zip(grid, shares, strict=True), key=lambda each: each[1][2])[-_CELLS_AGAIN:]
    count = _TIMES_AGAIN * repetitions
    worst, cell = max((measure(rule, cell, sizes, population, count, "again")[2], cell) for cell, _ in suspects)
    decisions = len(grid) * repetitions
    return Row(scores, population, name, decisions, paid, rounds, wrong, worst, wilson(worst, count), cell)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=400, help="decisions in each cell; default: 400")
    parser.add_argument("--confidence", type=float, default=0.95, help="default: 0.95")
    parser.add_argument("--first-look", type=int, default=8, help="examples before the first look; default: 8")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()
    rules = {name: make(arguments.first_look, arguments.confidence) for name, make in RULES.items()}
    rows = [
        summarise(scores, population, name, rule, arguments.repetitions)
        for scores, population, (name, rule) in product(SIZES, POPULATIONS, rules.items())
    ]
    if arguments.json:
        print(json.dumps([{**asdict(row), "cell": row.cell._asdict()} for row in rows], indent=2))
        return
    print(
        f"Confidence {arguments.confidence}, first look after {arguments.first_look} examples; "
        f"{sum(row.decisions for row in rows):,} decisions, and the {_CELLS_AGAIN} worst cells of each row again, "
        f"{_TIMES_AGAIN} times as often.\n"
    )
    print("| scores | examples | rule | paid | looks | false | false in the worst cell | (difference, discordant, T) |")
    print("| --- | ---: | --- | ---: | ---: | ---: | ---: | --- |")
    for row in rows:
        low, high = row.interval
        print(
            f"| {row.scores} | {row.population} | {row.rule} | {row.paid:.1%} | {row.rounds:.1f} | {row.wrong:.1%} | "
            f"{row.worst:.1%} ({low:.1%} to {high:.1%}) | {tuple(row.cell)} |"
        )


if __name__ == "__main__":
    main()
