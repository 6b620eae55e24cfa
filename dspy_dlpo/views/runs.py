"""Runs on disk: what is kept for those who look at a run later, and how they read it."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import TypeAdapter

from dspy_dlpo.core.records import Candidate
from dspy_dlpo.core.steps import RunInfo, Session, StepRecord
from dspy_dlpo.descent.outcome import NOT_ENDED, RunResult
from dspy_dlpo.descent.statistics import Gain
from dspy_dlpo.runtime.ledger import LEDGER, Ledger, reading
from dspy_dlpo.runtime.reading import KeptRun, read_run
from dspy_dlpo.views.result import DLPOResult

_RUN, _RESULT, _STEP = TypeAdapter(RunInfo), TypeAdapter(DLPOResult), TypeAdapter(StepRecord)


def keep_start(ledger: Ledger, run: RunInfo) -> RunInfo:
    """Keep what a run is made with, and that it has not ended; return it with its sessions, this one as the last."""
    before = ledger.note("run")
    earlier = _RUN.validate_json(before).sessions if before else ()
    now = datetime.now(UTC).astimezone().isoformat(timespec="seconds")
    session = Session(now, ledger.num_steps, ledger.paid)
    run = replace(run, sessions=(*earlier, session))
    ledger.add_notes(run=run, result=None)
    return run


def keep_end(ledger: Ledger, result: DLPOResult) -> DLPOResult:
    """Keep how a run ended, its steps being in the ledger already; return it with the time it took."""
    ledger.forget_steps(len(result.history))
    result = replace(result, run=_closed(result.run))
    ledger.add_notes(run=result.run, result=replace(result, history=()))
    return result


def keep_error(ledger: Ledger, run: RunInfo, error: BaseException) -> None:
    """Keep what ended a session before its run came to an end."""
    ledger.add_notes(run=_closed(run, type(error).__name__))


def _closed(run: RunInfo, error: str = "") -> RunInfo:
    """Return what a run is made with, its last session having ended now."""
    if not run.sessions:
        return run
    *earlier, last = run.sessions
    seconds = (datetime.now(UTC) - datetime.fromisoformat(last.started)).total_seconds()
    return replace(run, sessions=(*earlier, replace(last, seconds=max(seconds, 0.0), error=error)))


def find_runs(folder: str | Path) -> list[Path]:
    """Return the folders of all runs under a folder, itself included, in order of name."""
    return sorted(path.parent for path in Path(folder).rglob(LEDGER))


def load_result(log_dir: str | Path) -> DLPOResult:
    """Read a run from its folder, without the program.

    Args:
        log_dir: The `log_dir` it was made with.

    Returns:
        What `program.detailed_results` is after the run. Of a run that did not end, as far as it came: `stopped` is
        `NOT_ENDED`, `gain` is over no examples, and a score is on as many examples as its candidate had by then.

    Raises:
        FileNotFoundError: If there is no run.
        ValueError: If the file is no ledger, of another version, or damaged; or if the run had not begun.
        OSError: If the file cannot be read.
        RuntimeError: If a process has the run open.
    """
    kept = read_run(log_dir)
    with reading(Path(log_dir) / LEDGER):
        steps = [_STEP.validate_json(record) for record in kept.steps]
        run = _RUN.validate_json(kept.notes["run"])
        if kept.notes.get("result"):
            return replace(_RESULT.validate_json(kept.notes["result"]), history=tuple(steps), run=run)
        return _so_far(run, steps, kept, str(log_dir))


def program_state(result: RunResult, candidate: str | None = None) -> dict[str, Any]:
    """Return a candidate's program as `dspy.Module.save` writes it to JSON, for `load` of a program of the same form.

    It has no language models.

    Args:
        result: The run.
        candidate: Id of a candidate. Default: the one that was chosen.

    Raises:
        ValueError: If the run has no such candidate.
    """
    state = copy.deepcopy(dict(result.run.program))
    found = candidate_of(result, candidate)
    for name, text in found.instructions.items():
        own = state.get(name, state)  # A program that is one `Predict` is its own state.
        own["signature"]["instructions"] = text
        demos = [{**demo.fields, "augmented": demo.augmented} for demo in found.demos.get(name, ())]
        own["demos"] = [*own.get("demos", []), *demos]
    python = ".".join(result.run.versions["python"].split(".")[:2])
    return state | {"metadata": {"dependency_versions": {"python": python, "dspy": result.run.versions["dspy"]}}}


def candidate_of(result: RunResult, candidate: str | None = None) -> Candidate:
    """Return any candidate of a run, by default the one that was chosen.

    Raises:
        ValueError: If the run has no such candidate.
    """
    if candidate is None:
        return result.best
    made = (*result.candidates, *(each for record in result.history for each in record.candidates))
    for each in made:
        if each.id == candidate:
            return each
    raise ValueError(f"`candidate` must be the id of a candidate of the run, but got {candidate!r}.")


def _so_far(run: RunInfo, steps: list[StepRecord], kept: KeptRun, log_dir: str) -> DLPOResult:
    """Return what a run that did not end has found: the student, and each candidate that was scored on the valset."""
    made = {candidate.id: candidate for step in steps for candidate in step.candidates} | {run.student.id: run.student}
    bests = {run.student.id: math.nan} | {step.best: step.best_score for step in steps}
    subscores = {name: _on_valset(run, name, kept) for name in [*bests, *(name for name in made if name not in bests)]}
    found = [name for name, scores in subscores.items() if scores or name in bests]
    return DLPOResult(
        candidates=tuple(made.get(name, run.student) for name in found),
        val_aggregate_scores=tuple(
            fmean(subscores[name].values()) if subscores[name] else bests[name] for name in found
        ),
        num_val_examples=tuple(len(subscores[name]) for name in found),
        val_subscores=tuple(subscores[name] for name in found),
        best_idx=found.index(steps[-1].best if steps else run.student.id),
        gain=Gain(),
        history=tuple(steps),
        spent=kept.spent,
        stopped=NOT_ENDED,
        log_dir=log_dir,
        seed=run.settings["seed"],
        score_range=tuple(run.settings["score_range"]),
        failure_score=run.settings["failure_score"],
        run=run,
        lost=steps[-1].lost if steps else 0,
        errors=steps[-1].errors if steps else 0,
    )


def _on_valset(run: RunInfo, candidate: str, kept: KeptRun) -> dict[str, float]:
    """Return the mean score of a candidate on each validation example that it was run on."""
    scores: dict[str, list[float]] = {}
    for name, example, score in kept.scores:
        if name == candidate:
            scores.setdefault(example, []).append(score)
    return {name: fmean(scores[name]) for name in run.valset if name in scores}
