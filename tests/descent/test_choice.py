from __future__ import annotations

from collections.abc import Sequence

import pytest

from dspy_dlpo.core.records import Candidate
from dspy_dlpo.core.settings import Settings
from dspy_dlpo.descent.choice import Choice
from dspy_dlpo.runtime.budget import BudgetSpent

STUDENT, OLD, NEW = (Candidate({"self": text}) for text in ("Student.", "Old.", "New."))
VALSET = [f"val:{number}" for number in range(12)]


SETTINGS = Settings(
    trainset=(),
    valset=VALSET,
    num_steps=None,
    batch_size=4,
    num_candidates=2,
    max_trial_examples=4,
    max_passing=1,
    score_range=(0.0, 1.0),
    confidence=0.95,
    seed=0,
)


class KnownScores:
    """Stands for `Forward`: gives known scores, each of which costs one call of a budget."""

    def __init__(self, old: str, new: str, num_calls: int = 99) -> None:
        texts = {STUDENT.id: "0" * 12, OLD.id: old, NEW.id: new}
        self._known = {(name, VALSET[index]): float(score) for name in texts for index, score in enumerate(texts[name])}
        self._paid: set[tuple[str, str]] = set()
        self._num_calls = num_calls

    def pay_for_scores(self, candidate: Candidate, names: Sequence[str]) -> list[float]:
        for name in names:
            if len({*self._paid, (candidate.id, name)}) > self._num_calls:
                raise BudgetSpent("the budget is spent")
            self._paid.add((candidate.id, name))
        return self.known_scores(candidate, names)

    def known_scores(self, candidate: Candidate, names: Sequence[str]) -> list[float]:
        return [self._known[candidate.id, name] for name in names if (candidate.id, name) in self._paid]

    def differences(self, one: Candidate, other: Candidate, names: Sequence[str]) -> list[float]:
        pairs = zip(self.pay_for_scores(one, names), self.pay_for_scores(other, names), strict=True)
        return [score - another for score, another in pairs]

    def is_lost(self, candidate: Candidate, name: str) -> bool:
        return False


def chosen(scores: KnownScores) -> Candidate:
    """Return the choice when the old and then the new candidate were ahead on the trainset."""
    choice = Choice(scores, STUDENT, SETTINGS)  # type: ignore[arg-type]  # It does what a choice asks of it.
    choice.begin()
    choice.enter(OLD, is_ahead=True)
    choice.enter(NEW, is_ahead=True)
    choice.conclude()
    return choice.best


@pytest.mark.parametrize(
    ("old", "new", "best"),
    [
        ("110000000000", "110011110000", NEW),
        ("110011110000", "110000000000", OLD),
        ("110011000000", "110000001100", NEW),
        ("100000001100", "111000000000", NEW),
        ("111000000000", "100011000000", NEW),
    ],
    ids=["new is better", "old is better", "a tie", "new was ahead at first", "old was ahead at first"],
)
def test_choice_is_the_best_on_the_valset_and_of_a_tie_the_later(old: str, new: str, best: Candidate) -> None:
    assert chosen(KnownScores(old, new)) == best


def test_budget_that_ends_after_a_decision_leaves_it_and_before_it_leaves_the_best() -> None:
    for calls_of_the_old_one, best in [(6, OLD), (5, NEW)]:
        paid = 12 + 12 + calls_of_the_old_one  # The student's and the new one's come first.
        assert chosen(KnownScores("111011110000", "111000000000", num_calls=paid)) == best


def test_candidate_that_annealing_let_pass_meets_the_best_at_the_end() -> None:
    scores = KnownScores("110000000000", "111111110000")
    choice = Choice(scores, STUDENT, SETTINGS)  # type: ignore[arg-type]  # It does what a choice asks of it.
    choice.begin()
    choice.enter(NEW, is_ahead=False)
    choice.enter(OLD, is_ahead=True)
    assert choice.best == OLD
    choice.conclude()
    assert choice.best == NEW
