from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_dlpo.core.records import Candidate, Spending
from dspy_dlpo.core.steps import Outcome, RunInfo, StepRecord
from dspy_dlpo.runtime.budget import Budget, Limits
from dspy_dlpo.views.lines import Lines
from dspy_dlpo.views.progress import progress
from dspy_dlpo.views.report import render
from dspy_dlpo.views.words import mishaps
from tests.command_line import call
from tests.scripted import Oracle, examples, metric

STUDENT = Candidate({"answer": "Be brief."})
RUN = RunInfo(STUDENT, {}, {}, {}, "QA", 40, 15, "given", num_steps=5)


def test_best_score_is_told_with_the_examples_it_is_on() -> None:
    said: list[str] = []
    lines = Lines(said.append)
    lines.on_run_start(RUN, Budget(Limits(max_metric_calls=90)))
    record = StepRecord(1, STUDENT.id, ("train:0", "train:1"), 0.5, skipped=Outcome.NO_GRADIENT)
    for score, number in ((0.8125, 8), (0.9333, 15)):
        lines.on_step_end(StepRecord(**{**vars(record), "best_score": score, "best_examples": number}))
    assert [line.partition("; ")[2] for line in said] == [
        "best on the valset 0.812 (8 of 15); 0 of 90 metric calls",
        "best on the valset 0.933 (all 15); 0 of 90 metric calls",
    ]
    assert said[0].startswith("step 2/5: incumbent 0.500 on 2, no gradient; ")


def test_what_went_wrong_is_counted_with_its_kind() -> None:
    spent = Spending(empty_replies=2, cut_off_replies=1)
    record = StepRecord(0, STUDENT.id, (), 0.5, unparsed=3, lost=1, errors=4, spent=spent)
    assert mishaps(record) == [
        "4 rollouts ended in an error of the program or metric",
        "1 rollout lost to failing models or the time limit",
        "3 critic or proposer calls without a usable reply",
        "2 replies that held nothing",
        "1 reply cut off at the limit of length",
    ]
    assert mishaps(StepRecord(0, STUDENT.id, (), 0.5)) == []


def test_errors_of_the_metric_are_counted_wherever_the_end_of_a_run_is_shown(
    lm: dspy.LM, make: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    def typo(example: Any, pred: Any) -> Any:
        if "gamma" in example.question:
            raise NameError("name 'exmaple' is not defined")
        return metric(example, pred)

    with caplog.at_level(logging.INFO, logger="dspy_dlpo"):
        program = make(metric=typo, log_dir=tmp_path).compile(dspy.Predict(Oracle), trainset=examples(40))
    said = f"{program.detailed_results.errors} rollouts ended in an error of the program or metric"
    assert program.detailed_results.errors > 1
    assert said in caplog.messages[-1] or said in caplog.messages[-2]
    assert f"Mind: {said}" in call("show", tmp_path).stdout
    assert said in render(program.detailed_results)


def test_steps_are_logged_also_where_nothing_is_shown(
    lm: dspy.LM, make: Any, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO, logger="dspy_dlpo"):
        result = make().compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results
    lines = [record for record in caplog.records if record.name == "dspy_dlpo"]
    assert {record.levelno for record in lines} == {logging.INFO}
    steps = [record.getMessage() for record in lines if record.getMessage().startswith("step ")]
    assert len(steps) == len(result.history)
    assert "best on the valset 0.875 (8 of 16)" in steps[0]
    first = result.history[0]
    assert (first.best_examples, first.student_score) == (8, 0.0)
    assert lines[-1].getMessage().startswith(f"ended: {result.stopped}; valset 0.000 (all 16) -> 1.000 (all 16), gain ")
    assert capsys.readouterr().err == ""


def test_lines_that_logging_shows_already_are_not_printed_a_second_time(caplog: pytest.LogCaptureFixture) -> None:
    assert len(progress(verbose=True)) == 2
    with caplog.at_level(logging.INFO, logger="dspy_dlpo"):
        assert len(progress(verbose=True)) == 1


def test_printed_lines_do_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    Lines().on_run_error(ValueError("\x1b[2J in the message"))
    assert capsys.readouterr().err == "DLPO: ended by ValueError: \\x1b[2J in the message\n"
