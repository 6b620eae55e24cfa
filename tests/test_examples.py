from __future__ import annotations

import importlib
import inspect
import json
import sys
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_dlpo import TextualLearningRate
from tests.scripted import Oracle, examples

FOLDER = Path(__file__).parents[1] / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module
    for name in [name for name in sys.modules if name[:2].isdigit()]:
        del sys.modules[name]


def test_quickstart_orders_are_distinct_and_split_without_overlap(example: Any) -> None:
    parts = example("01_quickstart").load_orders()
    messages = [order.message for part in parts for order in part]
    assert [len(part) for part in parts] == [94, 20, 30]
    assert len(set(messages)) == len(messages) == 144


@pytest.mark.parametrize(
    ("line", "score", "notes"),
    [
        ("qty=7; item=jacket; size=M; col=blue", 1.0, 0),
        ("item=jacket; qty=7; col=blue; size=M", 1.0, 0),
        ("qty=77; item=jacket; size=M; col=blue", 0.8, 1),
        ("qty=7, item=jackets, size=M, col=blue", 0.6, 2),
        ("Seven blue jackets in medium, please!", 0.0, 5),
    ],
)
def test_quickstart_reviewer_scores_each_part_and_notes_what_is_wrong(
    example: Any, line: str, score: float, notes: int
) -> None:
    gold = dspy.Example(line="qty=7; item=jacket; size=M; col=blue")
    review = example("01_quickstart").review(gold, dspy.Prediction(line=line))
    assert review.score == pytest.approx(score)
    assert review.feedback.count(".") == notes


def test_no_reviewers_note_tells_an_answer(example: Any) -> None:
    notes = " ".join(example("01_quickstart").NOTES.values())
    orders = [json.loads(line) for line in (FOLDER / "data" / "orders.jsonl").read_text().splitlines()]
    articles = {order["line"].split("item=")[1].split(";")[0] for order in orders}
    assert not any(article in notes for article in articles)


def test_policy_of_ones_own_takes_under_forty_lines_and_freezes_what_has_stood(
    lm: dspy.LM, make: Any, example: Any
) -> None:
    policy = example("02_your_own_policy").TextualFreezing
    assert len(inspect.getsource(policy).splitlines()) < 40
    optimizer = make(policies=[TextualLearningRate(1), policy(age=1)], num_steps=6)
    result = optimizer.compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results
    frozen = [len(request.frozen) for record in result.history for request in record.requests]
    assert frozen[0] == 0
    assert frozen == sorted(frozen)
    assert frozen[-1] >= 2
    assert result.best_candidate["self"].startswith("Answer the question.\n")
