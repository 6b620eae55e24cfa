from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import dspy
import pytest

from dspy_dlpo import Listener, Policy, TextualLearningRate
from dspy_dlpo.core.records import Candidate
from dspy_dlpo.core.steps import Threshold
from dspy_dlpo.policies import State, StepContext
from dspy_dlpo.views.words import minibatch_of
from tests.scripted import Oracle, examples, fields, scripted_lm, world

POLITE = "- Always be polite to everybody."


class LetsPass(Policy):
    """Accepts a loss of any size."""

    def threshold(self, candidate: Candidate, incumbent: Candidate, state: State, ctx: StepContext) -> Threshold:
        return Threshold(-1.0)


def run(make: Any, critic: str | None = None, *, trainset: int = 40, **arguments: Any) -> Any:
    """Return the result of a run in the world, whose critic always says the same if it is given."""
    said = None if critic is None else (lambda system, user: fields(requirements=critic))
    with dspy.context(lm=scripted_lm(world(critic=said))):
        compiled = make(**arguments).compile(
            dspy.Predict(Oracle), trainset=examples(trainset), valset=examples(12, 100)
        )
    return compiled.detailed_results


def test_student_is_scored_where_candidates_will_meet_it_before_the_first_step(make: Any) -> None:
    (first,) = run(make, "NOTHING", num_steps=1).history
    assert first.best_examples == 8
    assert first.spent.metric_calls == 8 + 8  # Of the minibatch and the valset.


def test_steps_that_cost_nothing_end_the_run_and_the_first_one_counts(make: Any) -> None:
    result = run(make, "NOTHING", trainset=8, num_steps=50)
    assert result.stopped == "10 steps in a row had nothing to try"
    assert len(result.history) == 10


def test_every_minibatch_holds_a_batch_that_its_incumbent_was_not_known_to_pass(make: Any) -> None:
    result = run(make, num_steps=6, policies=[TextualLearningRate(1)], batch_size=4)
    texts = {each.id: each.instructions["self"] for record in result.history for each in record.candidates}
    rows = {f"train:{index}": example for index, example in enumerate(examples(40))}
    ran: set[tuple[str, str]] = set()
    passed_before = 0
    for record in result.history:
        text = texts.get(record.incumbent, "")
        known = [
            name
            for name in record.minibatch
            if (record.incumbent, name) in ran and f"answer {rows[name].answer}." in text
        ]
        passed_before += len(known)
        assert len(record.minibatch) == 4 + len(known)
        ran |= {(record.incumbent, name) for name in record.minibatch}
        if record.trial:
            sides = (record.trial.candidate, record.trial.incumbent)
            ran |= {(each, name) for each in sides for name in record.trial.examples}
    assert passed_before > 0


def test_candidate_that_is_only_as_good_becomes_the_incumbent_and_not_the_best(make: Any) -> None:
    first, second = run(make, POLITE, num_steps=2, policies=[LetsPass()]).history
    assert first.accepted
    assert first.trial.gain == 0
    assert second.incumbent == first.trial.candidate != first.incumbent
    assert first.best == second.best == first.incumbent


def test_candidates_of_a_step_meet_the_threshold_that_is_their_own(make: Any) -> None:
    class OneEdit(Policy):
        """Asks too much of candidates with more than one edit."""

        def threshold(self, candidate: Candidate, incumbent: Candidate, state: State, ctx: StepContext) -> Threshold:
            num_edits = sum(len(edits) for edits in candidate.edits.values())
            return Threshold(float(num_edits > 1), {"candidate": candidate.id})

    result = run(make, num_steps=6, policies=[OneEdit(), TextualLearningRate(2)])
    tried = [record.trial for record in result.history if record.trial]
    assert any(trial.candidate != record.candidates[0].id for record in result.history if (trial := record.trial))
    assert all(trial.threshold.because["candidate"] == trial.candidate for trial in tried)


def test_listener_hears_of_a_candidate_once_however_often_it_is_proposed(make: Any) -> None:
    class Hears(Listener):
        """Keeps the ids."""

        def __init__(self) -> None:
            self.candidates: list[str] = []

        def on_candidate(self, candidate: Candidate, step: int) -> None:
            self.candidates.append(candidate.id)

    listener = Hears()
    result = run(make, POLITE, num_steps=6, policies=[], listeners=[listener])
    proposed = [each.id for record in result.history for each in record.candidates]
    assert listener.candidates == list(dict.fromkeys(proposed))


def test_policies_learn_from_every_step_and_see_it_in_the_next(make: Any) -> None:
    class Counts(Policy):
        """Counts steps."""

        def init(self, requests: Any) -> State:
            return {"steps": 0}

        def learn(self, record: Any, state: State) -> State:
            return {"steps": state["steps"] + 1}

        def threshold(self, candidate: Candidate, incumbent: Candidate, state: State, ctx: StepContext) -> Threshold:
            return Threshold(0.0, {"steps": state["steps"]})

    result = run(make, num_steps=5, policies=[Counts(), TextualLearningRate(1)])
    counted: Mapping[int, int] = {
        record.step: record.trial.threshold.because["steps"] for record in result.history if record.trial
    }
    assert len(counted) > 1
    assert all(step == steps for step, steps in counted.items())


def kind(make: Any, **arguments: Any) -> Any:
    """Run a task that no instruction helps, with a critic that thinks of another kindness every time."""
    count = itertools.count()
    script = world(critic=lambda system, user: fields(requirements=f"- Be kind in way number {next(count)}."))
    with dspy.context(lm=scripted_lm(script)):
        optimizer = make(
            metric=lambda example, pred, trace=None: 0.5, sources=["CriticSentences", "Pruning"], **arguments
        )
        return optimizer.compile(dspy.Predict(Oracle), trainset=examples(40), valset=examples(5, 90)).detailed_results


def test_run_that_ends_with_budget_left_leaves_out_what_was_never_shown_to_help_in_last_steps(make: Any) -> None:
    result = kind(make, max_metric_calls=200, patience=3)
    last = [record for record in result.history if not record.minibatch]
    assert 0 < len(last) < len(result.history)
    assert {each.source for record in last for each in record.candidates} == {"Pruning"}
    assert result.best.instructions == result.run.student.instructions
    assert result.stopped == "nothing better in 3 steps"
    assert result.spent.metric_calls < 200
    assert last[0].figures()["score"] is None
    assert minibatch_of(last[0]) == "no minibatch"


@pytest.mark.parametrize("reply", ["NOTHING", "- Answer the question."])
def test_critic_that_has_nothing_new_to_say_costs_less_and_less(make: Any, reply: str) -> None:
    asked = []

    def critic(system: str, user: str) -> str:
        asked.append(user)
        return fields(requirements=reply)

    with dspy.context(lm=scripted_lm(world(critic=critic))):
        optimizer = make(metric=lambda example, pred, trace=None: 0.5, sources=["CriticSentences"], num_steps=5)
        student = dspy.Predict(dspy.Signature("question -> answer", "Answer the question."))
        optimizer.compile(student, trainset=examples(40), valset=examples(5, 90))
    assert len(asked) == 8 + 4 + 2 + 1 + 1


def test_run_of_a_number_of_steps_takes_none_more(make: Any) -> None:
    result = kind(make, num_steps=3)
    assert any(record.accepted for record in result.history)
    assert len(result.history) == 3
