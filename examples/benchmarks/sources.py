"""What each source of candidates buys: runs on the simulated tasks with all of them, and without one.

    python -m examples.benchmarks.sources --seeds 12
    python -m examples.benchmarks.sources --seeds 24 --rules    # The same for the rules of screening.

For each task and variant: the mean expected accuracy of the result with its standard error, the LM calls of critic and
proposer, and all tokens. Demos are left out: the simulated model learns little from them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from statistics import fmean, stdev
from unittest.mock import patch

import dspy

from dspy_dlpo import DLPOOptimizer, Tuning
from dspy_dlpo.benchmarks.rivals import plans
from dspy_dlpo.benchmarks.simulation.simulator import DIFFICULTIES, simulation
from dspy_dlpo.descent.screening import RULES
from dspy_dlpo.descent.sources import SOURCES


def run(difficulty: str, sources: Sequence[str], seed: int, max_metric_calls: int) -> tuple[float, int, int]:
    """Return the expected accuracy of an optimised program, the other LM calls, and all tokens."""
    world = simulation(difficulty, seed)
    task = world.task
    valset = list(task.valset)[: plans.valset_share(max_metric_calls, len(task.valset))]
    optimizer = DLPOOptimizer(
        task.metric,
        prompt_model=world.prompt_lm,
        max_metric_calls=max_metric_calls,
        seed=seed,
        num_threads=2,
        verbose=False,
        tuning=Tuning(sources=sources),
    )
    with dspy.context(lm=world.lm):
        program = optimizer.compile(task.program, trainset=list(task.trainset), valset=valset)
    spent = program.detailed_results.spent
    return world.program_accuracy(program), spent.lm_calls - spent.metric_calls, spent.tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--tasks", nargs="+", default=list(DIFFICULTIES))
    parser.add_argument("--budget", type=int, default=300)
    parser.add_argument("--rules", action="store_true", help="leave out rules of screening in place of sources")
    given = parser.parse_args()
    left_out = RULES if given.rules else [name for name in SOURCES if name != "Demos"]
    for without in (None, *left_out):
        for difficulty in given.tasks:
            sources = [name for name in SOURCES if name != without]
            kept = {name: rule for name, rule in RULES.items() if name != without}
            with patch("dspy_dlpo.descent.screening.RULES", kept):
                runs = [run(difficulty, sources, seed, given.budget) for seed in range(given.seeds)]
            scores = [100 * score for score, *_ in runs]
            error = stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else 0.0
            name = "all" if without is None else f"without {without}"
            calls, tokens = fmean(calls for _, calls, _ in runs), fmean(tokens for *_, tokens in runs)
            print(
                f"{name:44}{difficulty:8}{fmean(scores):6.1f} (error {error:.1f}), {calls:.0f} other LM calls, "
                f"{tokens:,.0f} tokens",
                flush=True,
            )


if __name__ == "__main__":
    main()
