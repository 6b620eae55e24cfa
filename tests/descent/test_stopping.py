from __future__ import annotations

import logging
from typing import Any

import pytest

from dspy_dlpo.core.records import Candidate, Spending
from dspy_dlpo.core.steps import Outcome, StepRecord
from dspy_dlpo.descent.choice import Choice
from dspy_dlpo.descent.sampling import Sampler
from dspy_dlpo.descent.step import Step
from dspy_dlpo.descent.stopping import MAX_IDLE_STEPS, Stopping, early_end
from dspy_dlpo.descent.walk import Walk
from dspy_dlpo.policies import StepContext
from dspy_dlpo.runtime.budget import Budget, BudgetSpent, Limits
from dspy_dlpo.runtime.faults import FATAL, Outage
from tests.descent.scores import KnownScores, names, settings

STUDENT = Candidate({"self": "Student."})
WRONG_KEY = FATAL[0](model="m", message="wrong key sk-abcdefghijklmnopqrstuvwx")


def record(step: int = 0, **fields: Any) -> StepRecord:
    return StepRecord(step, STUDENT.id, (), 0.0, **fields)


def walk(*records: StepRecord, **fields: Any) -> Walk:
    choice = Choice(KnownScores({}, []), STUDENT, settings())
    return Walk(STUDENT, STUDENT, choice, {}, {STUDENT.id: STUDENT}, history=list(records or [record()]), **fields)


def reason(stands: Walk, scores: str = "0" * 20, limits: Limits | None = None, limit: str = "", **given: Any) -> str:
    """Return why a run ends that stands there, in which the student has scores that are all paid."""
    numbers = settings(**given)
    known = KnownScores({STUDENT: scores}, names(20))
    known.pay_for_scores(STUDENT, names(20))
    step = Step(StepContext(0, 0), STUDENT, [], 1.0, limit=limit)
    return Stopping(numbers, Budget(limits), known, Sampler(numbers)).reason(stands, step)


def test_run_goes_on_while_there_is_no_reason_to_end_it() -> None:
    assert reason(walk(), num_steps=5, patience=3) == ""


def test_limit_that_ended_a_step_ends_the_run_before_anything_else_does() -> None:
    assert reason(walk(), limit="max_cost: 1 of 1 spent", num_steps=1) == "max_cost: 1 of 1 spent"


@pytest.mark.parametrize("num_steps", [1, 3])
def test_run_ends_after_as_many_steps_as_asked_for(num_steps: int) -> None:
    records = [record(step) for step in range(num_steps)]
    assert reason(walk(*records), num_steps=num_steps) == f"{num_steps} steps are done"
    assert reason(walk(*records), num_steps=num_steps + 1) == ""


def test_perfect_minibatch_ends_the_run_only_if_the_whole_trainset_is_known_to_be_passed() -> None:
    perfect = walk(record(skipped=Outcome.PERFECT_MINIBATCH))
    assert reason(perfect, "1" * 20) == "the program is perfect on the whole trainset"
    assert reason(perfect, "1" * 19 + "0") == ""
    assert reason(walk(record(skipped=Outcome.NO_GRADIENT)), "1" * 20) == ""


def test_patience_counts_steps_without_a_better_best() -> None:
    assert reason(walk(num_without_gain=3), patience=3) == "nothing better in 3 steps"
    assert reason(walk(num_without_gain=2), patience=3) == ""
    assert reason(walk(num_without_gain=100)) == ""


def test_steps_that_try_nothing_end_the_run_after_ten_and_a_whole_epoch() -> None:
    assert reason(walk(num_idle=MAX_IDLE_STEPS)) == f"{MAX_IDLE_STEPS} steps in a row had nothing to try"
    assert reason(walk(num_idle=MAX_IDLE_STEPS - 1)) == ""
    assert reason(walk(num_idle=19), batch_size=1) == ""
    assert reason(walk(num_idle=20), batch_size=1) == "20 steps in a row had nothing to try"
    assert reason(walk(num_idle=10), batch_size=7) == "10 steps in a row had nothing to try"


@pytest.mark.parametrize("num_repeats", [1, 3])
@pytest.mark.parametrize("num_candidates", [1, 2, 5])
def test_run_ends_where_the_next_step_could_not_be_paid_to_its_end(num_candidates: int, num_repeats: int) -> None:
    def stops(left: int, paid: int) -> bool:
        numbers = settings(num_candidates=num_candidates, num_repeats=num_repeats)
        sampler = Sampler(numbers)
        known = KnownScores({STUDENT: "0" * 20}, names(20))
        stands = walk(position=8)
        ahead = [*sampler.minibatch(8, lambda name: False), *sampler.minibatch(12, lambda name: False)]
        known.pay_for_scores(STUDENT, ahead[:paid])
        budget = Budget(Limits(max_metric_calls=left + 50))
        budget.charge(Spending(metric_calls=50))
        step = Step(StepContext(0, 0), STUDENT, [], 1.0)
        return Stopping(numbers, budget, known, sampler).reason(stands, step).startswith("max_metric_calls: ")

    for paid in (0, 3, 6, 8):  # Of the minibatch and the first look: four each.
        needed = (8 - paid + 4 * num_candidates) * num_repeats
        assert stops(needed - 1, paid)
        assert not stops(needed, paid)


@pytest.mark.parametrize("failure", [Outage("no answer"), WRONG_KEY], ids=["outage", "wrong key"])
def test_failure_before_any_candidate_is_raised_and_later_it_ends_the_run_with_the_best(
    failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    for stands in (walk(), walk(record(0), record(1))):
        with pytest.raises(type(failure)):
            early_end(stands, failure)
    with caplog.at_level(logging.WARNING):
        told = early_end(walk(record(candidates=(STUDENT,)), record(1)), failure)
    assert str(failure).split(" ")[0] in told
    assert "The run ends early, with the best so far" in caplog.text


def test_limit_that_is_reached_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    assert early_end(walk(), BudgetSpent("max_cost: 1 of 1 spent")) == "max_cost: 1 of 1 spent"
    assert caplog.text == ""


def test_reason_of_a_failure_holds_no_key() -> None:
    assert "abcdefghijklmnop" not in early_end(walk(record(candidates=(STUDENT,))), WRONG_KEY)
