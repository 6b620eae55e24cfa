"""How often the interval of the final gain holds the true gain, when the best of several candidates was chosen.

    python -m examples.benchmarks.coverage [--runs N] [--seed SEED]

Each simulated run draws a valset from a population in which the true gain of every candidate over the student is known.
The candidates arrive one after another, meet the best so far and are chosen from by the code of a real run
(`dspy_dlpo.descent.choice.Choice`), early stops included; only the scores are drawn instead of paid for.

* Binary scores: the student is right on half of the population; each candidate turns 30 % of the answers.
* Graded scores, 0 to 1: often a small improvement, now and then a total failure, so that differences are skewed.

The interval of the run stands beside the textbook one (mean +- 1.96 standard errors), which ignores the choice. Runs in
which the student was chosen hold for both, their gain being 0 exactly; a second column leaves them out.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from itertools import product
from statistics import fmean
from typing import TYPE_CHECKING, Any

from dspy_dlpo.benchmarks.extras import extra
from dspy_dlpo.core.records import Candidate
from dspy_dlpo.core.settings import Settings
from dspy_dlpo.descent.choice import Choice
from dspy_dlpo.descent.statistics import Gain, mean_interval

if TYPE_CHECKING:
    import numpy as np
else:
    np = extra("numpy")

BATCH_SIZE = 8
TRUTHS = {"0": (0.0, 0.0), "+0.1": (0.1, 0.1), "-0.1 to +0.2": (-0.1, 0.2)}
SIZES = (10, 20, 50, 100)
NUM_CANDIDATES = (1, 3, 10)
Scores = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def binary_scores(rng: np.random.Generator, gains: Sequence[float], size: int) -> Scores:
    """Return scores of 0 and 1: a row for the student and one for each candidate, whose true gains are given."""
    student = rng.random(size) < 0.5
    chance = 0.3 + np.where(student, -1, 1) * np.array(gains)[:, None]
    turned = rng.random(chance.shape) < chance
    return np.vstack([student, student ^ turned]).astype(float)


def graded_scores(rng: np.random.Generator, gains: Sequence[float], size: int) -> Scores:
    """Return scores in [0, 1]: a row for the student and one for each candidate, whose true gains are given."""
    student = rng.integers(0, 6, size) / 5
    gain = np.array(gains)[:, None]
    fails = 0.05 + 2 * np.maximum(-gain, 0)  # Each failure costs the student's score, on average 1/2 ...
    improves = 4 * (gain + fails / 2)  # ... and each improvement half of what is left to the top, on average 1/4.
    draw = rng.random((len(gains), size))
    scores = np.where(draw < fails, 0, np.where(draw < fails + improves, (1 + student) / 2, student))
    return np.vstack([student, scores])


class DrawnForward:
    """Stands in for `Forward`: a run of a program looks its score up."""

    def __init__(self, names: Sequence[str], candidates: Sequence[Candidate], scores: Scores) -> None:
        self._scores = {
            candidate.id: dict(zip(names, row, strict=True))
            for candidate, row in zip(candidates, scores.tolist(), strict=True)
        }
        self._met: set[tuple[str, str]] = set()

    def pay_for_scores(self, candidate: Candidate, examples: Sequence[str]) -> list[float]:
        """Return the scores, as if paying for them."""
        self._met |= {(candidate.id, name) for name in examples}
        return self.known_scores(candidate, examples)

    def is_lost(self, candidate: Candidate, example: str) -> bool:
        """Return False: nothing is lost here."""
        return False

    def differences(self, candidate: Candidate, other: Candidate, examples: Sequence[str]) -> list[float]:
        """Return the paired differences, as if paying for them."""
        scores = zip(self.pay_for_scores(candidate, examples), self.pay_for_scores(other, examples), strict=True)
        return [mine - its for mine, its in scores]

    def known_scores(self, candidate: Candidate, examples: Sequence[str]) -> list[float]:
        """Return the scores on those examples that were asked for before."""
        return [self._scores[candidate.id][name] for name in examples if (candidate.id, name) in self._met]


def simulate(scores: Scores) -> tuple[int, Gain]:
    """Return the index of the row that a run chooses, the student being 0, and the gain it reports."""
    names = [f"val:{index}" for index in range(scores.shape[1])]
    candidates = [Candidate({"self": str(index)}) for index in range(len(scores))]
    forward: Any = DrawnForward(names, candidates, scores)
    settings = Settings(
        trainset=(),
        valset=names,
        num_steps=None,
        batch_size=BATCH_SIZE,
        num_candidates=2,
        max_trial_examples=16,
        max_passing=1,
        score_range=(0.0, 1.0),
        confidence=0.95,
        seed=0,
    )
    choice = Choice(forward, candidates[0], settings)
    choice.begin()
    for candidate in candidates[1:]:
        choice.enter(candidate, is_ahead=True)
    gain = choice.conclude()
    return candidates.index(choice.best), gain


def measure(kind: str, truth: str, size: int, num_candidates: int, num_runs: int, seed: int) -> dict[str, list[float]]:
    """Return, for each run, whether each interval held the truth and how wide it was."""
    rng = np.random.default_rng([seed, size, num_candidates])
    draw = {"binary": binary_scores, "graded": graded_scores}[kind]
    columns: dict[str, list[float]] = {
        name: [] for name in ("chosen", "held", "width", "textbook held", "textbook width")
    }
    for _ in range(num_runs):
        gains = rng.uniform(*TRUTHS[truth], num_candidates)
        scores = draw(rng, gains.tolist(), size)
        best, gain = simulate(scores)
        true_gain = [0.0, *gains][best]
        error = 1.96 * float(np.std(scores[best] - scores[0], ddof=1)) / math.sqrt(size)
        columns["chosen"].append(best > 0)
        columns["held"].append(gain.low <= true_gain <= gain.high)
        columns["width"].append(gain.high - gain.low)
        columns["textbook held"].append(abs(gain.mean - true_gain) <= error)
        columns["textbook width"].append(2 * error)
    return columns


def row(columns: dict[str, list[float]]) -> list[str]:
    """Return the cells of a line of the table."""
    chosen = columns["chosen"]

    def of_chosen(name: str) -> list[float]:
        return [value for value, was in zip(columns[name], chosen, strict=True) if was] or [math.nan]

    low, high = (100 * end for end in mean_interval(columns["held"], 0.0, 1.0))  # That of Clopper and Pearson.
    return [
        f"{100 * fmean(chosen):.1f}",
        f"{100 * fmean(columns['held']):.1f} ({low:.1f} to {high:.1f})",
        f"{100 * fmean(of_chosen('held')):.1f}",
        f"{fmean(of_chosen('width')):.2f}",
        f"{100 * fmean(columns['textbook held']):.1f}",
        f"{100 * fmean(of_chosen('textbook held')):.1f}",
        f"{fmean(of_chosen('textbook width')):.2f}",
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000, help="a row")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(f"{arguments.runs} runs a row; coverage in %, with its own 95 % interval.\n")
    head = ["scores", "true gain", "examples", "candidates", "chose one", "covered", "if it chose", "width"]
    head += ["textbook", "if it chose", "width"]
    print(f"| {' | '.join(head)} |\n| --- | --- |{' ---: |' * (len(head) - 2)}")
    least = {"held": 1.0, "textbook held": 1.0}
    for kind, truth, size, number in product(("binary", "graded"), TRUTHS, SIZES, NUM_CANDIDATES):
        columns = measure(kind, truth, size, number, arguments.runs, arguments.seed)
        print(f"| {' | '.join([kind, truth, str(size), str(number), *row(columns)])} |", flush=True)
        least = {name: min(share, fmean(columns[name])) for name, share in least.items()}
    print(f"\nLeast coverage of all rows: {least['held']:.1%}; textbook {least['textbook held']:.1%}.")


if __name__ == "__main__":
    main()
