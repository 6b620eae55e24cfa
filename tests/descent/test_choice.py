from __future__ import annotations

from collections.abc import Sequence

import pytest

from dspy_dlpo.core.records import Candidate
from dspy_dlpo.descent.choice import Choice
from dspy_dlpo.runtime.budget import BudgetSpent
from dspy_dlpo.runtime.faults import FATAL
from tests.descent.scores import KnownScores, names, settings

STUDENT, OLD, NEW, THIRD = (Candidate({"self": text}) for text in ("Student.", "Old.", "New.", "Third."))
VALSET = names(12, "val")


def known(old: str, new: str, third: str = "0" * 12, student: str = "0" * 12, num_calls: int = 999) -> KnownScores:
    return KnownScores({STUDENT: student, OLD: old, NEW: new, THIRD: third}, VALSET, num_calls)


def chosen(scores: KnownScores) -> Candidate:
    """Return the choice when the old and then the new candidate were ahead on the trainset."""
    choice = Choice(scores, STUDENT, settings())
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
    assert chosen(known(old, new)) == best


def test_budget_that_ends_after_a_decision_leaves_it_and_before_it_leaves_the_best() -> None:
    for calls_of_the_old_one, best in [(6, OLD), (5, NEW)]:
        paid = 12 + 12 + calls_of_the_old_one  # The student's and the new one's come first.
        assert chosen(known("111011110000", "111000000000", num_calls=paid)) == best


def test_candidate_that_annealing_let_pass_meets_the_best_at_the_end() -> None:
    scores = known("110000000000", "111111110000")
    choice = Choice(scores, STUDENT, settings())
    choice.begin()
    choice.enter(NEW, is_ahead=False)
    choice.enter(OLD, is_ahead=True)
    assert choice.best == OLD
    choice.conclude()
    assert choice.best == NEW


def test_student_is_scored_where_the_candidates_will_meet_it_before_any_of_them() -> None:
    scores = known("1" * 12, "1" * 12)
    Choice(scores, STUDENT, settings()).begin()
    assert scores.paid == [(STUDENT.id, name) for name in VALSET[:4]]


def test_candidate_meets_the_best_on_the_first_validation_examples_only() -> None:
    scores = known("1" * 12, "0" * 12)
    choice = Choice(scores, STUDENT, settings())
    choice.begin()
    choice.enter(OLD, is_ahead=True)
    assert choice.best == OLD
    assert scores.num_paid(OLD) == scores.num_paid(STUDENT) == 4


def test_candidate_that_annealing_let_pass_pays_nothing_on_the_valset_before_the_end() -> None:
    scores = known("1" * 12, "1" * 12)
    choice = Choice(scores, STUDENT, settings())
    choice.enter(OLD, is_ahead=False)
    assert choice.best == STUDENT
    assert scores.paid == []


def test_only_candidates_that_score_higher_than_the_best_count_as_a_gain() -> None:
    choice = Choice(known("1100" + "0" * 8, "0011" + "0" * 8, "1110" + "0" * 8), STUDENT, settings())
    choice.begin()
    for candidate, num_gains in [(OLD, 1), (NEW, 1), (THIRD, 2)]:
        choice.enter(candidate, is_ahead=True)
        assert choice.best == candidate
        assert choice.num_gains == num_gains


def test_incumbent_that_comes_back_is_the_last_one_again() -> None:
    scores = known("111100000000", "000000000000")
    choice = Choice(scores, STUDENT, settings())
    choice.begin()
    for candidate in (OLD, NEW, OLD):
        choice.enter(candidate, is_ahead=False)
    choice.conclude()
    assert scores.paid[12:16] == [(OLD.id, name) for name in VALSET[:4]]


def test_standing_compares_best_and_student_on_the_same_examples() -> None:
    scores = known("111100000000", "0" * 12, student="000011111111")
    choice = Choice(scores, STUDENT, settings())
    choice.begin()
    scores.pay_for_scores(STUDENT, VALSET)
    choice.enter(OLD, is_ahead=True)
    assert choice.standing == {"best": OLD.id, "best_score": 1.0, "best_examples": 4, "student_score": 0.0}


def test_standing_is_zero_where_nothing_was_scored_yet() -> None:
    choice = Choice(known("0" * 12, "0" * 12), STUDENT, settings())
    assert choice.standing == {"best": STUDENT.id, "best_score": 0.0, "best_examples": 0, "student_score": 0.0}


@pytest.mark.parametrize("is_ahead", [True, False], ids=["better on the trainset", "let pass by annealing"])
@pytest.mark.parametrize("steps", [[], [OLD], [OLD, NEW]], ids=["no candidate", "one", "two"])
def test_what_is_kept_back_for_the_final_choice_is_what_student_best_and_last_still_cost(
    steps: list[Candidate], is_ahead: bool
) -> None:
    scores = known("111111110000", "000000000000")
    choice = Choice(scores, STUDENT, settings())
    choice.begin()
    for candidate in steps:
        choice.enter(candidate, is_ahead=is_ahead)
    finalists = {STUDENT.id: VALSET, choice.best.id: VALSET}
    needed = {(each, name) for each, examples in finalists.items() for name in examples}
    needed |= {((steps or [STUDENT])[-1].id, name) for name in VALSET[:4]}
    best_may_be_another = 12 if choice.best == STUDENT else 0
    assert choice.unpaid == len(needed - {*scores.paid}) + best_may_be_another


def test_nothing_is_kept_back_once_student_best_and_last_are_paid() -> None:
    scores = known("1" * 12, "0" * 12)
    choice = Choice(scores, STUDENT, settings())
    choice.enter(OLD, is_ahead=True)
    choice.conclude()
    assert choice.unpaid == 0


def test_result_that_is_not_above_the_student_is_the_student() -> None:
    for student in ("110000000000", "111000000000"):
        choice = Choice(known("001100000000", "0" * 12, student=student), STUDENT, settings())
        choice.enter(OLD, is_ahead=True)
        gain = choice.conclude()
        assert choice.best == STUDENT
        assert (gain.mean, gain.low, gain.high, gain.num_examples, gain.num_candidates) == (0, 0, 0, 12, 1)


def test_last_incumbent_that_is_only_as_good_as_the_best_does_not_take_its_place() -> None:
    choice = Choice(known("110000001111", "110000000000"), STUDENT, settings())
    choice.begin()
    choice.enter(OLD, is_ahead=True)
    choice.enter(NEW, is_ahead=False)
    choice.conclude()
    assert choice.best == OLD


@pytest.mark.parametrize(
    ("last", "best"), [("0011", OLD), ("0001", OLD), ("0111", NEW)], ids=["as good", "worse", "better"]
)
def test_last_incumbent_takes_the_place_of_the_best_if_it_is_better_where_they_meet(last: str, best: Candidate) -> None:
    meeting = 4 + 4 + 8 + 4  # The student, the best, the student on the rest of the valset, the last incumbent.
    choice = Choice(known("110000000000", last + "0" * 8, num_calls=meeting), STUDENT, settings())
    choice.begin()
    choice.enter(OLD, is_ahead=True)
    choice.enter(NEW, is_ahead=False)
    choice.conclude()
    assert choice.best == best


@pytest.mark.parametrize(
    ("new", "third", "nearest"),
    [("1110", "1100", NEW), ("1100", "1110", THIRD), ("1110", "1110", THIRD)],
    ids=["the earlier is nearer", "the later is nearer", "the later of equals"],
)
def test_of_the_challengers_that_were_behind_the_best_only_the_nearest_is_paid(
    new: str, third: str, nearest: Candidate
) -> None:
    scores = known("1" * 12, new + "1" * 8, third + "1" * 8)
    choice = Choice(scores, STUDENT, settings())
    choice.begin()
    for candidate in (NEW, THIRD, OLD):
        choice.enter(candidate, is_ahead=True)
    choice.conclude()
    assert choice.best == OLD
    assert {each for each in (NEW, THIRD) if scores.num_paid(each) > 4} == {nearest}


@pytest.mark.parametrize("order", [(NEW, THIRD), (THIRD, NEW)], ids=["New first", "Third first"])
def test_of_incumbents_that_never_met_the_valset_the_latest_is_paid_first(order: tuple[Candidate, Candidate]) -> None:
    scores = known("111111111111", "000000000000")
    choice = Choice(scores, STUDENT, settings())
    choice.begin()
    for candidate in order:
        choice.enter(candidate, is_ahead=False)
    choice.enter(OLD, is_ahead=True)
    choice.conclude()
    assert [each for each, _ in scores.paid].index(order[1].id) < [each for each, _ in scores.paid].index(order[0].id)


def test_every_challenger_that_was_not_behind_meets_the_best_on_the_whole_valset() -> None:
    scores = known("110000000000", "110000111111", "110000100000")
    choice = Choice(scores, STUDENT, settings())
    choice.begin()
    for candidate in (NEW, THIRD, OLD):
        choice.enter(candidate, is_ahead=True)
    assert choice.best == OLD  # Equal where they met; the latest stands.
    choice.conclude()
    assert choice.best == NEW
    assert scores.num_paid(NEW) == scores.num_paid(OLD) == 12


def test_incumbent_that_never_met_the_valset_meets_the_best_in_the_end() -> None:
    scores = known("110000000000", "110000000000", "111111111111")
    choice = Choice(scores, STUDENT, settings())
    choice.begin()
    choice.enter(THIRD, is_ahead=False)
    choice.enter(OLD, is_ahead=True)
    choice.conclude()
    assert choice.best == THIRD


@pytest.mark.parametrize(
    "error", [BudgetSpent("spent"), FATAL[0](model="m", message="wrong key")], ids=["budget", "wrong key"]
)
def test_final_choice_that_cannot_be_paid_leaves_the_best_and_its_gain(error: Exception) -> None:
    class Broken(KnownScores):
        is_broken = False

        def pay_for_scores(self, candidate: Candidate, examples: Sequence[str]) -> list[float]:
            if self.is_broken:
                raise error
            return super().pay_for_scores(candidate, examples)

    scores = Broken({STUDENT: "0" * 12, OLD: "1" * 12}, VALSET)
    choice = Choice(scores, STUDENT, settings())
    choice.begin()
    choice.enter(OLD, is_ahead=True)
    scores.is_broken = True
    gain = choice.conclude()
    assert choice.best == OLD
    assert (gain.mean, gain.num_examples) == (1.0, 4)


def test_gain_allows_for_the_candidates_that_met_the_valset_and_for_an_early_end() -> None:
    def interval(num_calls: int, *steps: Candidate) -> tuple[float, int]:
        choice = Choice(known("1" * 12, "0" * 12, "0" * 12, num_calls=num_calls), STUDENT, settings())
        choice.begin()
        for candidate in steps:
            choice.enter(candidate, is_ahead=True)
        gain = choice.conclude()
        assert gain.mean == 1
        return gain.low, gain.num_candidates

    one, two, three = interval(999, OLD), interval(999, NEW, OLD), interval(999, NEW, THIRD, OLD)
    assert [number for _, number in (one, two, three)] == [1, 2, 3]
    assert one[0] > two[0] > three[0]
    whole = Choice(KnownScores({STUDENT: "0000", OLD: "1111"}, VALSET[:4]), STUDENT, settings(valset=VALSET[:4]))
    whole.enter(OLD, is_ahead=True)
    early, _ = interval(8, OLD)
    assert early < whole.conclude().low  # The same four scores; but where a run may end, luck may end it.


def test_candidate_that_was_never_scored_on_the_valset_does_not_widen_the_interval() -> None:
    choice = Choice(known("1" * 12, "0" * 12, num_calls=8), STUDENT, settings())
    choice.begin()
    choice.enter(OLD, is_ahead=True)
    choice.enter(NEW, is_ahead=False)
    assert choice.conclude().num_candidates == 1


def test_gain_over_lost_examples_is_that_of_a_whole_valset_without_them() -> None:
    lost = Choice(known("1" * 11 + "-", "0" * 12), STUDENT, settings())
    whole = Choice(KnownScores({STUDENT: "0" * 11, OLD: "1" * 11}, VALSET[:11]), STUDENT, settings(valset=VALSET[:11]))
    for choice in (lost, whole):
        choice.begin()
        choice.enter(OLD, is_ahead=True)
    assert lost.conclude() == whole.conclude()


@pytest.mark.parametrize("num_calls", range(16, 24))
def test_final_choice_leaves_no_call_unused_where_it_cannot_pay_for_the_whole_valset(num_calls: int) -> None:
    scores = known("0" * 12, "1" * 12, num_calls=num_calls)
    choice = Choice(scores, STUDENT, settings())
    choice.begin()
    choice.enter(NEW, is_ahead=True)
    gain = choice.conclude()
    assert choice.best == NEW
    assert len(scores.paid) == num_calls
    assert gain.num_examples == num_calls - 12
