from __future__ import annotations

import dataclasses
import logging
import math
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_dlpo.core.records import Spending
from dspy_dlpo.descent.outcome import NOT_ENDED
from dspy_dlpo.runtime.ledger import Ledger
from dspy_dlpo.views.runs import find_runs, keep_start, load_result
from dspy_dlpo.views.words import ending_of, models_of, resumed, took
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
    assert ending_of(broken) == "not ended, broken off by KeyboardInterrupt"
    assert broken.spent.lm_calls == 79  # The last step, too, which did not end.
    assert broken.spent.metric_calls > broken.history[-1].spent.metric_calls
    assert broken.num_val_examples[0] == 8 == len(broken.val_subscores[0])
    assert "not measured" in repr(broken)
    with dspy.context(lm=scripted_lm()):
        whole = make(log_dir=tmp_path).compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results
    assert 0 < len(broken.history) < len(whole.history)
    for ours, its in zip(broken.history, whole.history, strict=False):
        assert dataclasses.replace(ours, spent=its.spent) == its
    assert broken.best_candidate == dict(broken.candidates[broken.best_idx].instructions)
    assert broken.candidates[broken.best_idx].id == whole.history[len(broken.history) - 1].best


def test_run_knows_its_sessions_and_what_the_earlier_ones_had_paid(
    lm: dspy.LM, make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = make(log_dir=tmp_path, num_steps=2).compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results
    (session,) = first.run.sessions
    assert (session.steps, session.paid, session.error) == (0, Spending(), "")
    assert resumed(first.run) == ""
    with caplog.at_level(logging.INFO, logger="dspy_dlpo"):
        second = make(log_dir=tmp_path, num_steps=4).compile(dspy.Predict(Oracle), trainset=examples(40))
    sessions = second.detailed_results.run.sessions
    assert [each.steps for each in sessions] == [0, 2]
    assert replace(sessions[1].paid, seconds=0.0) == replace(first.spent, seconds=0.0)
    said = f"resumed with 2 steps done and {first.spent.metric_calls} metric calls, {first.spent.lm_calls} LM calls, "
    assert caplog.messages[0].startswith(said)
    assert load_result(tmp_path).run.sessions == sessions
    for each in sessions:
        assert datetime.now(UTC) - datetime.fromisoformat(each.started) < timedelta(minutes=2)
        assert each.seconds is not None


def test_killed_session_has_no_time_and_the_whole_is_said_to_have_taken_at_least_that_of_the_others(
    lm: dspy.LM, make: Any, tmp_path: Path
) -> None:
    result = make(log_dir=tmp_path).compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results
    ledger = Ledger(tmp_path, dict(settings_of(tmp_path)))
    keep_start(ledger, result.run)  # And then its process dies.
    ledger.close()
    killed = load_result(tmp_path)
    assert [each.seconds is None for each in killed.run.sessions] == [False, True]
    assert took(killed.run).startswith("at least ")


def settings_of(folder: Path) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as file:
        return file.execute("SELECT name, value FROM settings").fetchall()


def test_run_keeps_the_names_of_its_models(lm: dspy.LM, make: Any) -> None:
    other = scripted_lm(model="scripted/other")
    runs = [
        make(num_steps=1, prompt_model=prompt_model).compile(dspy.Predict(Oracle), trainset=examples(40))
        for prompt_model in (None, other)
    ]
    alike, apart = (program.detailed_results.run for program in runs)
    assert models_of(alike) == "scripted/model"
    assert models_of(apart) == "scripted/model, critic and proposer scripted/other"
    assert apart.settings["prompt_model"] == "scripted/other"
    assert alike.settings["prompt_model"] == "scripted/model"


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
    def stop(system: str, user: str) -> str:
        (tmp_path / "STOP").touch()
        return world()(system, user)

    with dspy.context(lm=scripted_lm(stop)):
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
