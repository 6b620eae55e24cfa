"""What optimisers make of a prompt that is wrong: it names another task, and asks for another form of answer.

    python -m examples.benchmarks.bad_prompts
    python -m examples.benchmarks.bad_prompts --tasks bbh/web_of_lies --model local --data-dir DATA --budget 150

The prompt of a simulated task gets five sentences that do harm, the prompt of another is replaced. A run counts as
recovered if its program is at least nine tenths as good as one with an instruction by a person.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean

from dspy_dlpo.benchmarks.compare import Setting, Setup, compare
from dspy_dlpo.benchmarks.setups import settings_of, setup_named
from dspy_dlpo.benchmarks.simulation.simulator import simulation
from dspy_dlpo.core.records import Candidate
from dspy_dlpo.runtime.program import with_instructions

BAD_PROMPT = "Translate the question into French. Write the answer as a full sentence in French."


def spoiled(setup: Setup, difficulty: str | None, seed: int) -> Setting:
    """Return the setting with a bad prompt; `difficulty` is that of a simulated task."""
    setting = setup(seed)
    name, predictor = setting.task.program.named_predictors()[0]
    instruction = BAD_PROMPT
    if difficulty is not None:
        harmful = [rule.sentence() for rule in simulation(difficulty, seed).world.harmful.values()]
        instruction = " ".join([predictor.signature.instructions, *harmful])
    program = with_instructions(setting.task.program, Candidate({name: instruction}))
    return replace(setting, task=replace(setting.task, program=program))


def main() -> None:
    """Print the scores of each optimiser, and how many of its runs recovered."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["simulated/medium"])
    parser.add_argument("--optimizers", nargs="+", default=["dlpo", "gepa"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budget", type=int, default=300)
    parser.add_argument("--model")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--sizes", type=int, nargs=3, default=(80, 50, 50))
    parser.add_argument("--folder", type=Path, default=Path("runs/bad_prompts"))
    parser.add_argument("--num-threads", type=int, default=16)
    given = parser.parse_args()
    shared = given.model, None, given.data_dir, tuple(given.sizes)
    cells = compare(
        {
            name: partial(spoiled, setup_named(name, *shared), name.partition("simulated/")[2] or None)
            for name in given.tasks
        },
        ["human", "none", *given.optimizers],
        folder=given.folder,
        max_metric_calls=given.budget,
        seeds=range(given.seeds),
        num_threads=given.num_threads,
        curves=False,
        settings={name: {**settings_of(name, *shared), "prompt": BAD_PROMPT} for name in given.tasks},
    )
    for task in given.tasks:
        of_person = {cell.seed: cell.score for cell in cells if (cell.task, cell.optimizer) == (task, "human")}
        for optimizer in ("human", "none", *given.optimizers):
            runs = [cell for cell in cells if (cell.task, cell.optimizer) == (task, optimizer)]
            scores = {cell.seed: cell.score or 0.0 for cell in runs}  # A run that failed recovered nothing.
            recovered = sum(score >= 0.9 * (of_person[seed] or 0.0) for seed, score in scores.items())
            each = ", ".join(f"{100 * score:.0f}" for score in scores.values())
            print(f"{task} {optimizer:8} {100 * fmean(scores.values()):5.1f} ({each}), {recovered} recovered,", end=" ")
            print(f"{fmean(cell.metric_calls for cell in runs):.0f} metric calls,", end=" ")
            print(f"{fmean(cell.lm_calls for cell in runs):.0f} LM calls,", end=" ")
            print(f"{fmean(cell.tokens for cell in runs):,.0f} tokens")


if __name__ == "__main__":
    main()
