"""Runs on disk: what is kept for those who look at a run later, and how they read it."""

from __future__ import annotations

import copy
import math
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import to_json

from dspy_dlpo.core.records import RunInfo, Spending, StepRecord
from dspy_dlpo.descent.statistics import Gain
from dspy_dlpo.runtime.ledger import LEDGER, Ledger, damaged, refuse_what_is_not_ours
from dspy_dlpo.views.result import DLPOResult

NOT_ENDED = "not ended"
_RUN, _RESULT, _STEP = TypeAdapter(RunInfo), TypeAdapter(DLPOResult), TypeAdapter(StepRecord)


def keep_start(ledger: Ledger, run: RunInfo) -> None:
    """Keep what a run is made with, and that it has not ended."""
    ledger.add_note("run", _RUN.dump_json(run).decode())
    ledger.add_note("result", "")


def keep_end(ledger: Ledger, result: DLPOResult) -> None:
    """Keep how a run ended. Its steps are in the ledger already."""
    ledger.forget_steps(len(result.history))
    # Without its steps; a student that was never scored has NaN, which JSON proper lacks.
    ledger.add_note("result", to_json(replace(result, history=()), inf_nan_mode="constants").decode())


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
        RuntimeError: If a process has the run open.
    """
    path = Path(log_dir) / LEDGER
    if not path.is_file():
        raise FileNotFoundError(f"No run in {log_dir}: it has no {LEDGER}. Give the `log_dir` of a run.")
    refuse_what_is_not_ours(path)
    try:
        with closing(sqlite3.connect(path, timeout=0.2)) as file:
            notes = dict(file.execute("SELECT name, value FROM notes"))
            steps = [
                _STEP.validate_json(record) for (record,) in file.execute("SELECT record FROM steps ORDER BY step")
            ]
    except sqlite3.OperationalError as error:
        raise RuntimeError(f"Another process has {path} open: the run is going on ({error}).") from error
    except sqlite3.DatabaseError as error:
        raise damaged(path, error) from error
    if "run" not in notes:
        raise ValueError(f"The run in {log_dir} ended before it began. Make it again.")
    if notes["result"]:
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
