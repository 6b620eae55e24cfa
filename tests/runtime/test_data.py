"""Examples as users have them: taken as they are meant, or refused in a sentence with the way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dspy
import numpy as np
import pandas as pd
import pytest

from dspy_dlpo.core.plain import jsonable, well_formed
from dspy_dlpo.runtime.budget import Budget, BudgetSpent
from dspy_dlpo.runtime.data import prepare
from dspy_dlpo.runtime.interrupt import ended_by_ctrl_c
from tests.scripted import Oracle, examples, scripted_lm

ROWS = [{"question": "?", "answer": "!"}] * 3


@pytest.mark.parametrize("make_it", [iter, tuple, lambda rows: (row for row in rows)])
def test_any_ordered_collection_of_examples_is_taken(make_it: Any) -> None:
    data = prepare(make_it(examples(25)), None, 0)
    assert len(data.trainset) + len(data.valset) == 25


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        (pd.DataFrame(ROWS), TypeError, r"got a DataFrame\. .*for row in trainset.to_dict\('records'\)"),
        (
            {*examples(3)},
            TypeError,
            "must have an order, but got a set",
        ),
        (frozenset([1]), TypeError, "must have an order, but got a frozenset"),
        (ROWS, TypeError, r"trainset\[0\] must be a dspy.Example, but got .*with_inputs"),
        (examples(1)[0], TypeError, "`trainset` must be a list of dspy.Example"),
        ("trainset.json", TypeError, "`trainset` must be a list of dspy.Example, but got 'trainset.json'"),
        (None, TypeError, "`trainset` must be a list of dspy.Example, but got None"),
        (3, TypeError, "`trainset` must be a list of dspy.Example"),
        ({"a": 1}, TypeError, "`trainset` must be a list of dspy.Example"),
        ([], ValueError, "must hold at least one example"),
        ([dspy.Example(question="?")], ValueError, "has no inputs"),
        (
            [dspy.Example(question="?", answer="!").with_inputs("qestion")],
            ValueError,
            r"with_inputs\('qestion'\) names a field that no example has\. .* Did you mean 'question'\?",
        ),
    ],
)
def test_what_is_no_trainset_is_refused_with_the_way_out(given: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        prepare(given, None, 0)


def test_input_that_only_some_examples_have_may_be_left_out() -> None:
    some = [dspy.Example(question="?", context="c").with_inputs("question", "context")]
    assert len(prepare([*some, dspy.Example(question="!").with_inputs("question", "context")], None, 0).trainset) == 2


def test_shared_and_repeated_examples_are_told_with_their_number(caplog: pytest.LogCaptureFixture) -> None:
    prepare(examples(30), examples(10, 25), 0)
    assert "5 of the 10 validation examples have the inputs of a train example" in caplog.text
    caplog.clear()
    prepare([*examples(30), *examples(4)], examples(10, 100), 0)
    assert "4 of the 34 examples of the trainset have the inputs of another one" in caplog.text
    caplog.clear()
    trainset = examples(30)
    prepare(trainset, trainset, 0)
    assert "30 of the 30 validation examples" in caplog.text
    caplog.clear()
    prepare(examples(30), examples(10, 100), 0)
    prepare(examples(30), None, 0)
    assert not caplog.text


DEMOS = {
    "number of NumPy": np.float32(0.5),
    "array": np.arange(4),
    "bytes": b"\xff\x00",
    "image": dspy.Image(url="data:image/png;base64,aaaa"),
    "table": pd.DataFrame({"a": [1]}),
    "date": pd.Timestamp("2020-01-01").to_pydatetime(),
    "not a number": float("nan"),
    "object": object(),
    "set": {1, 2},
}


@pytest.mark.parametrize("value", DEMOS.values(), ids=DEMOS)
def test_demo_with_any_value_is_kept_and_the_result_is_json(make: Any, tmp_path: Path, value: Any) -> None:
    student = dspy.Predict(Oracle)
    student.demos = [dspy.Example(question="?", answer="!", extra=value)]
    with dspy.context(lm=scripted_lm()):
        program = make(num_steps=1, log_dir=tmp_path).compile(student, examples(40), valset=examples(5, 100))
    assert [type(demo.extra) for demo in program.demos] == [type(value)]
    kept = json.loads(json.dumps(program.detailed_results.to_dict()))
    assert len(kept["run"]["program"]["demos"]) == 1


def test_whatever_there_is_becomes_json() -> None:
    loop: list[Any] = [1]
    value = {("a", 1): [np.int64(3), b"x", "\ud83d", {2.5}], None: Path("x"), "nested": {"d": dspy.Example(q=1)}}
    assert json.loads(json.dumps(jsonable(value)))["nested"] == {"d": {"q": 1}}
    assert jsonable(loop) == [1]
    assert well_formed("ä\ud83d") == "ä\\ud83d"
    assert well_formed("whole \U0001f600") == "whole \U0001f600"


# What stops a run.


@pytest.mark.parametrize("kind", ["file", "folder", "full folder", "link", "link to nothing"])
def test_stop_of_any_kind_ends_a_run_and_one_that_was_left_does_not(tmp_path: Path, kind: str) -> None:
    def put() -> None:
        stop = tmp_path / "STOP"
        if kind == "file":
            stop.touch()
        elif "folder" in kind:
            stop.mkdir()
            if kind == "full folder":
                (stop / "inside").touch()
        else:
            target = tmp_path / "target"
            if kind == "link":
                target.touch()
            stop.symlink_to(target)

    put()
    left = Budget(stop_file=tmp_path / "STOP")
    with ended_by_ctrl_c(left):
        left.check()
    if kind != "full folder":
        put()
    budget = Budget(stop_file=tmp_path / "STOP")
    with pytest.raises(BudgetSpent, match=r"stopped by .*STOP"):
        budget.check()
    with pytest.raises(BudgetSpent, match=r"stopped by .*STOP"):
        budget.check()
