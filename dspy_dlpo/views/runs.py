"""Runs on disk: what is kept for those who look at a run later, and how they read it."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from dspy_dlpo.core.records import RunInfo, Spending, StepRecord
from dspy_dlpo.descent.outcome import NOT_ENDED
from dspy_dlpo.descent.statistics import Gain
from dspy_dlpo.runtime.ledger import LEDGER, Ledger, reading
from dspy_dlpo.runtime.reading import read_run
from dspy_dlpo.views.result import DLPOResult

_RUN, _RESULT, _STEP = TypeAdapter(RunInfo), TypeAdapter(DLPOResult), TypeAdapter(StepRecord)


def keep_start(ledger: Ledger, run: RunInfo) -> None:
    """Keep what a run is made with, and that it has not ended."""
    ledger.add_notes(run=run, result=None)


def keep_end(ledger: Ledger, result: DLPOResult) -> None:
    """Keep how a run ended. Its steps are in the ledger already."""
    ledger.forget_steps(len(result.history))
    ledger.add_notes(result=replace(result, history=()))


def find_runs(folder: str | Path) -> list[Path]:
    """Return the folders of all runs under a folder, itself included, in order of name."""
    return sorted(path.parent for path in Path(folder).rglob(LEDGER))


def load_result(log_dir: str | Path) -> DLPOResult:
    """Read a run from its folder, without the program.

    Args:
        log_dir: The `log_dir` it was made with.

    Returns:
        What `program.detailed_results` is after the run. Of a run that did not end, as far as it came: `stopped` is
        `NOT_ENDED`, `gain` is over no examples, and a score is on as many examples as its candidate had by then, which
        `num_val_examples` does not tell.

    Raises:
        FileNotFoundError: If there is no run.
        ValueError: If the file is no ledger, of another version, or damaged; or if the run had not begun.
        OSError: If the file cannot be read.
        RuntimeError: If a process has the run open.
    """
    notes, records = read_run(log_dir)
    with reading(Path(log_dir) / LEDGER):
        steps = [_STEP.validate_json(record) for record in records]
        if notes.get("result"):
            return replace(_RESULT.validate_json(notes["result"]), history=tuple(steps))
        return _so_far(_RUN.validate_json(notes["run"]), steps, str(log_dir))


def program_state(result: DLPOResult, candidate: str | None = None) -> dict[str, Any]:
    """Return a candidate's program as `dspy.Module.save` writes it to JSON, for `load` of a program of the same form.

    It has the student's demos and no language models.

    Args:
        result: The run.
        candidate: Id of a candidate. Default: the one that was chosen.

    Raises:
        ValueError: If the run has no such candidate.
    """
    state = copy.deepcopy(dict(result.run.program))
    for name, text in instructions_of(result, candidate).items():
        state.get(name, state)["signature"]["instructions"] = text  # A program that is one `Predict` is its own state.
    python = ".".join(result.run.versions["python"].split(".")[:2])
    return state | {"metadata": {"dependency_versions": {"python": python, "dspy": result.run.versions["dspy"]}}}


def instructions_of(result: DLPOResult, candidate: str | None = None) -> Mapping[str, str]:
    """Return the instructions of any candidate of a run, by default of the one that was chosen.

    Raises:
        ValueError: If the run has no such candidate.
    """
    if candidate is None:
        return result.best_candidate
    made = (*result.candidates, *(each for record in result.history for each in record.candidates))
    for each in made:
        if each.id == candidate:
            return each.instructions
    raise ValueError(f"`candidate` must be the id of a candidate of the run, but got {candidate!r}.")


def _so_far(run: RunInfo, steps: list[StepRecord], log_dir: str) -> DLPOResult:
    """Return what a run that did not end has found: the student, and each candidate that was the best after a step."""
    made = {candidate.id: candidate for step in steps for candidate in step.candidates}
    scores = {run.student.id: math.nan} | {step.best: step.best_score for step in steps}
    best = steps[-1].best if steps else run.student.id
    return DLPOResult(
        candidates=tuple(made.get(each, run.student) for each in scores),
        val_aggregate_scores=tuple(scores.values()),
        num_val_examples=(0,) * len(scores),
        best_idx=list(scores).index(best),
        gain=Gain(),
        history=tuple(steps),
        spent=steps[-1].spent if steps else Spending(),
        stopped=NOT_ENDED,
        log_dir=log_dir,
        seed=run.settings["seed"],
        score_range=tuple(run.settings["score_range"]),
        failure_score=run.settings["failure_score"],
        run=run,
    )
