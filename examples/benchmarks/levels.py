"""Does a larger budget find better programs? `auto="light"`, `"medium"` and `"heavy"` on the simulated tasks.

    python -m examples.benchmarks.levels --seeds 12

For each task and level: the mean expected accuracy of the result with its standard error, and the metric calls; then
the mean paired difference to the level before, with its 95 % interval.
"""

from __future__ import annotations

import argparse
from statistics import fmean, stdev

import dspy

from dspy_dlpo import DLPOOptimizer, paired_interval
from dspy_dlpo.benchmarks.simulation.simulator import DIFFICULTIES, simulation

LEVELS = ("light", "medium", "heavy")


def run(difficulty: str, level: str, seed: int) -> tuple[float, int]:
    """Return the expected accuracy of an optimised program, from 0 to 1, and the metric calls it took."""
    world = simulation(difficulty, seed)
    task = world.task
    optimizer = DLPOOptimizer(
        task.metric, prompt_model=world.prompt_lm, auto=level, seed=seed, num_threads=2, verbose=False
    )
    with dspy.context(lm=world.lm):
        program = optimizer.compile(task.program, trainset=list(task.trainset), valset=list(task.valset))
    return world.program_accuracy(program), program.detailed_results.spent.metric_calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--tasks", nargs="+", default=list(DIFFICULTIES))
    given = parser.parse_args()
    for difficulty in given.tasks:
        before: list[float] = []
        for level in LEVELS:
            runs = [run(difficulty, level, seed) for seed in range(given.seeds)]
            scores = [score for score, _ in runs]
            error = stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else 0.0
            calls = fmean(calls for _, calls in runs)
            line = f"{difficulty:8}{level:8}{100 * fmean(scores):6.1f} (error {100 * error:.1f}), {calls:.0f} calls"
            if before:
                low, high = paired_interval(before, scores)
                gain = fmean(scores) - fmean(before)
                line += f"; {100 * gain:+.1f} ({100 * low:+.1f} to {100 * high:+.1f}) to the level before"
            print(line, flush=True)
            before = scores


if __name__ == "__main__":
    main()
