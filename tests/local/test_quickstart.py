from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dspy
import pytest

from dspy_dlpo import load_result, paired_interval
from dspy_dlpo.benchmarks.simulation.scripted import add_criticism, field, fields, play
from dspy_dlpo.local import quickstart
from tests.scripted import scripted_lm


def test_quickstart_orders_are_distinct_and_split_without_overlap() -> None:
    parts = quickstart.load_orders()
    messages = [order.message for part in parts for order in part]
    assert [len(part) for part in parts] == [102, 12, 30]
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
def test_quickstart_reviewer_scores_each_part_and_notes_what_is_wrong(line: str, score: float, notes: int) -> None:
    gold = dspy.Example(line="qty=7; item=jacket; size=M; col=blue")
    review = quickstart.review(gold, dspy.Prediction(line=line))
    assert review.score == pytest.approx(score)
    assert review.feedback.count(".") == notes


def test_no_reviewers_note_tells_an_answer() -> None:
    notes = " ".join(quickstart.NOTES.values())
    orders = [order for part in quickstart.load_orders() for order in part]
    articles = {order.line.split("item=")[1].split(";")[0] for order in orders}
    assert not any(article in notes for article in articles)


FORM = quickstart.FORM


class StandIn:
    """A local model's LM, whose engine is a stand-in."""

    def __init__(self, lm: dspy.LM, engine: Any) -> None:
        self.lm = lm
        self.engine = engine

    def copy(self, **settings: Any) -> dspy.LM:
        return self.lm.copy(**settings)


def clerk(system: str, user: str) -> str:
    """Keep to the form once the instruction tells it; a fifth of the score is for that."""
    return fields(line="=; =; =; =" if FORM in system else "none")


def critic(system: str, user: str) -> str:
    return fields(requirements=FORM if FORM in field(user, "complaint") else "nothing")


def test_quickstart_tunes_tests_and_tells_what_came_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    lm, told = scripted_lm(play(clerk, critic, add_criticism)), list[str]()
    result = quickstart.tune(lm, lm, num_threads=2, log_dir=tmp_path, say=told.append)
    assert load_result(tmp_path).best_candidate == result.best_candidate
    before, *added = result.best_candidate["self"].splitlines()
    assert before == "Write the order line for the warehouse."
    assert FORM in added
    header, first, *rest = told[0].strip().splitlines()
    assert re.fullmatch(r"instruction before +instruction after *", header)
    assert re.fullmatch(r"Write the order line for the +Write the order line for the warehouse. *", first)
    assert re.sub(r"\s+", " ", "".join(line[33:] for line in rest)).strip() == " ".join(added)
    low, high = (100 * end for end in paired_interval([0.0] * 30, [0.2] * 30))
    assert told[1:3] == [
        "Test score of 30 orders: 0.0 before, 20.0 after",
        f"Gain: +20.0 points (95 % interval {low:+.1f} to {high:+.1f})",
    ]
    assert told[3].startswith(f"Cost of optimising: dollars unknown; {result.spent.metric_calls} metric calls")
    assert re.fullmatch(r"Time, test runs included: \d+\.\d minutes", told[4])


@pytest.mark.parametrize(
    ("fetched", "said"), [(False, "is fetched first (1.1 GB, once)"), (True, "is on this machine already (1.1 GB)")]
)
def test_quickstart_says_first_what_will_happen_and_last_what_to_do_next(
    fetched: bool, said: str, lm: dspy.LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = list[str]()
    engine = SimpleNamespace(load=lambda: told.append("loaded"), cancel=lambda: told.append("freed"))
    monkeypatch.setattr("dspy_dlpo.local.engine.local_lm", lambda *names, **settings: StandIn(lm, engine))
    monkeypatch.setattr(quickstart, "is_fetched", lambda name: fetched)
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(quickstart, "tune", lambda *models, **settings: asked.append(settings))
    quickstart.quickstart(seed=3, log_dir=tmp_path, say=told.append)
    assert said in told[0]
    assert told[1] == "loaded"
    assert told[2].startswith("The model is ready")
    assert told[3:] == ["freed", f"\nNext, see what the run did and why: dspy-dlpo report {tmp_path} --open"]
    assert asked[0]["seed"] == 3
    assert asked[0]["num_threads"] >= 8
    assert asked[0]["free_because"] == "it ran on this machine"


def test_interrupted_quickstart_frees_what_is_in_flight(lm: dspy.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*models: Any, **settings: Any) -> None:
        raise KeyboardInterrupt

    freed: list[bool] = []
    engine = SimpleNamespace(load=lambda: None, cancel=lambda: freed.append(True))
    monkeypatch.setattr("dspy_dlpo.local.engine.local_lm", lambda *names, **settings: StandIn(lm, engine))
    monkeypatch.setattr(quickstart, "is_fetched", lambda name: True)
    monkeypatch.setattr(quickstart, "tune", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quickstart.quickstart(say=lambda text: None)
    assert freed == [True]
