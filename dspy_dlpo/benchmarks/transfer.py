"""Tuned instructions on other tasks, or with other models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from dspy_dlpo.benchmarks.cells import Cell, add_cell, keep_settings, read_cells
from dspy_dlpo.benchmarks.compare import Outages, Setup, prompt_tokens_of, quiet, test_program, versions_used
from dspy_dlpo.core.records import Candidate
from dspy_dlpo.runtime.program import with_instructions


def transfer(
    cells: Iterable[Cell],
    tasks: Mapping[str, Setup],
    *,
    folder: str | Path | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    num_threads: int = 1,
) -> list[Cell]:
    """Test tuned instructions on other tasks or with other models. Nothing is optimised; demos stay behind.

    The instruction of a program with one predictor goes to the only predictor of the other, whatever their names.

    Args:
        cells: Results of a comparison, for example `read_cells(folder)`. Those without a score are left out.
        tasks: For each name a function from the seed to the task and the models to test on. The program must have the
            predictors that the instructions are for.
        folder: Where the results are kept; what it has is not run again. None keeps nothing.
        settings: As for `compare`.
        num_threads: Program runs in flight at once.

    Returns:
        For each cell and task a cell of the new task, with the old one's optimiser, budget and seed, and the new score.
        `optimizer` says where the instructions come from: `dlpo from gsm8k`.

    Raises:
        ValueError: If no cell has a score, or the program of a task has other predictors.
        dspy.LMError: If a language model cannot be reached.
    """
    tuned = [cell for cell in cells if cell.score is not None]
    if not tuned:
        raise ValueError("`cells` must hold a result with a score. Give the folder of a comparison that has one.")
    if folder is not None:
        keep_settings(folder, settings or {})
    done = {cell.key: cell for cell in read_cells(folder)} if folder is not None else {}
    found = []
    for (name, setup), cell in product(tasks.items(), tuned):
        new = Cell(name, f"{cell.optimizer} from {cell.task}", cell.max_metric_calls, cell.seed)
        old = done.get(new.key)
        if old and [*old.instructions.values()] == [*cell.instructions.values()]:
            found.append(old)
            continue
        setting = setup(cell.seed)
        names = [predictor for predictor, _ in setting.task.program.named_predictors()]
        instructions = dict(cell.instructions)
        if len(names) == len(instructions) == 1:
            instructions = dict(zip(names, instructions.values(), strict=True))
        if {*instructions} != {*names}:
            raise ValueError(
                f"`tasks` must have programs with the predictors {sorted(instructions)}, but {name} has others. "
                "Tune on a program of the same form."
            )
        program = with_instructions(setting.task.program, Candidate(instructions))
        outages = Outages()
        setting = replace(setting, task=replace(setting.task, metric=outages.watched(setting.task.metric)))
        with quiet():
            score, scores = test_program(setting, outages.watch(setting.lm), num_threads, program)
        if outages.problem:
            raise outages.problem
        found.append(
            replace(
                new,
                score=score,
                scores=scores,
                curve=[],
                cost=0.0,
                prompt_tokens=prompt_tokens_of(program),
                instructions=instructions,
                versions=dict(versions_used()),
            )
        )
        if folder is not None:
            add_cell(folder, found[-1])
    return found
