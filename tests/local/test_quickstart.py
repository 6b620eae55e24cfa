from __future__ import annotations

from pathlib import Path

import dspy
import pytest

from dspy_dlpo import load_result, paired_interval
from dspy_dlpo.benchmarks.simulation.scripted import add_criticism, field, fields, play
from dspy_dlpo.local import quickstart
from tests.scripted import scripted_lm


def test_quickstart_orders_are_distinct_and_split_without_overlap() -> None:
    parts = quickstart.load_orders()
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


FORM = "The line holds four parts, separated by semicolons, and nothing else."


def clerk(system: str, user: str) -> str:
    """Keep to the form once the instruction tells it; a fifth of the score is for that."""
    return fields(line="=; =; =; =" if FORM in system else "none")


def critic(system: str, user: str) -> str:
    return fields(requirements=FORM if FORM in field(user, "complaint") else "nothing")


def test_quickstart_tunes_tests_and_tells_what_came_of_it(tmp_path: Path) -> None:
    lm, told = scripted_lm(play(clerk, critic, add_criticism)), list[str]()
    quickstart.run(lm, lm, num_threads=2, log_dir=tmp_path, say=told.append)
    result = load_result(tmp_path)
    assert result.best_candidate["self"] == f"Write the order line for the warehouse.\n{FORM}"
    assert told[-5:-2] == [
        "\nTest score before: 0.0",
        "Test score after:  20.0",
        "Gain: +20.0 points (95 % interval {:+.1f} to {:+.1f})".format(
            *(100 * end for end in paired_interval([0.0] * 30, [0.2] * 30))
        ),
    ]
    assert told[-2].startswith(f"Optimising took {result.spent.metric_calls} metric calls")
