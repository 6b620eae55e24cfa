from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_dlpo.runtime.ledger import Ledger
from dspy_dlpo.views.runs import NOT_ENDED, find_runs, load_result
from tests.scripted import Oracle, examples, scripted_lm, world


def test_loaded_run_is_the_one_that_was_made(lm: dspy.LM, make: Any, tmp_path: Path) -> None:
    program = make(log_dir=tmp_path).compile(dspy.Predict(Oracle), trainset=examples(40))
    assert load_result(tmp_path) == program.detailed_results


def test_run_that_did_not_end_is_loaded_as_far_as_it_came(make: Any, tmp_path: Path) -> None:
    requests: list[str] = []

    def failing(system: str, user: str) -> str:
        requests.append(user)
        if len(requests) == 80:
            raise KeyboardInterrupt
        return world()(system, user)

    with dspy.context(lm=scripted_lm(failing)), pytest.raises(KeyboardInterrupt):
        make(log_dir=tmp_path, num_threads=1).compile(dspy.Predict(Oracle), trainset=examples(40))
    broken = load_result(tmp_path)
    assert broken.stopped == NOT_ENDED
    with dspy.context(lm=scripted_lm()):
        whole = make(log_dir=tmp_path).compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results
    assert 0 < len(broken.history) < len(whole.history)
    for ours, its in zip(broken.history, whole.history, strict=False):
        assert dataclasses.replace(ours, spent=its.spent) == its
    assert broken.best_candidate == dict(broken.candidates[broken.best_idx].instructions)
    assert broken.candidates[broken.best_idx].id == whole.history[len(broken.history) - 1].best


def test_program_with_a_model_that_cannot_be_saved_is_kept_without_it(
    lm: dspy.LM, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(type(lm.engine), "dump_state", raising=False)
    program = dspy.Predict(Oracle)
    program.set_lm(lm)
    with pytest.raises(TypeError, match="dump_state"):
        program.dump_state()
    make(log_dir=tmp_path).compile(program, trainset=examples(40))
    assert load_result(tmp_path).run.program["lm"] is None


def test_folder_without_a_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No run in"):
        load_result(tmp_path)


def test_run_that_is_going_on_says_so(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, {})
    try:
        with pytest.raises(RuntimeError, match="the run is going on"):
            load_result(tmp_path)
    finally:
        ledger.close()


def test_all_runs_under_a_folder_are_found(tmp_path: Path) -> None:
    for name in ("b", "a/c"):
        Ledger(tmp_path / name, {}).close()
    assert find_runs(tmp_path) == [tmp_path / "a" / "c", tmp_path / "b"]


def test_run_that_ended_before_its_first_score_is_loaded(make: Any, tmp_path: Path) -> None:
    (tmp_path / "STOP").touch()
    with dspy.context(lm=scripted_lm()):
        program = make(log_dir=tmp_path).compile(dspy.Predict(Oracle), trainset=examples(40))
    assert program.detailed_results.stopped.startswith("stopped by")
    loaded = load_result(tmp_path)
    assert math.isnan(loaded.val_aggregate_scores[0])
    assert loaded.candidates == program.detailed_results.candidates


def test_fewer_steps_on_resume_leave_no_stale_ones(make: Any, tmp_path: Path) -> None:
    for num_steps in (4, 1):
        with dspy.context(lm=scripted_lm()):
            made = make(log_dir=tmp_path, num_steps=num_steps).compile(dspy.Predict(Oracle), trainset=examples(40))
    assert load_result(tmp_path) == made.detailed_results
