from __future__ import annotations

import json
import logging
from typing import Any

import dspy
import numpy as np
import pytest
from dspy.lm15 import TransportError

from dspy_dlpo.core.edits import Edit
from dspy_dlpo.descent.origins import Origin
from dspy_dlpo.descent.statistics import paired_interval
from dspy_dlpo.policies import TextualLearningRate
from dspy_dlpo.runtime.budget import Budget, BudgetSpent
from dspy_dlpo.views.explain import Explanation
from dspy_dlpo.views.words import failing_of
from examples.benchmarks.coverage import simulate
from tests.scripted import SECRETS, CountingMetric, Oracle, examples, fields, metric, scripted_lm, world

SOLVED = "\n".join(f"When the topic is {topic}, answer {secret}." for topic, secret in SECRETS.items())
USELESS = world(critic=lambda system, user: fields(requirements="Always be brief and rude to everybody."))


# The gain that compile reports.


def test_gain_is_that_on_the_valset_and_allows_for_all_candidates_that_met_it(lm: dspy.LM, make: Any) -> None:
    optimizer = make(num_steps=8, policies=[TextualLearningRate(2)])
    result = optimizer.compile(dspy.Predict(Oracle), trainset=examples(40), valset=examples(15, 100)).detailed_results
    assert result.gain.mean == 1
    assert result.gain.num_examples == 15
    assert result.gain.num_candidates == len(result.candidates) - 1 > 1
    interval = paired_interval([0.0] * 15, [1.0] * 15, num_candidates=result.gain.num_candidates)
    assert (result.gain.low, result.gain.high) == interval


def test_gain_is_on_the_scale_of_the_metric(lm: dspy.LM, make: Any) -> None:
    def percent(example: Any, pred: Any) -> Any:
        found = metric(example, pred)
        return dspy.Prediction(score=100 * found.score, feedback=found.feedback)

    optimized = make(metric=percent, score_range=(0, 100), num_steps=8).compile(
        dspy.Predict(Oracle), trainset=examples(40)
    )
    assert optimized.detailed_results.gain.mean == 100
    assert 0 < optimized.detailed_results.gain.low < 100


def test_gain_is_exactly_zero_and_said_so_where_the_student_is_returned(
    make: Any, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with dspy.context(lm=scripted_lm(USELESS)):
        optimized = make(verbose=True).compile(dspy.Predict(Oracle), trainset=examples(40))
    gain = optimized.detailed_results.gain
    assert (gain.mean, gain.low, gain.high) == (0, 0, 0)
    assert not gain.is_sure
    assert "gain 0, no candidate was better than the student" in capsys.readouterr().err
    assert caplog.messages == []


def test_gain_that_may_be_chance_is_told_and_logged_as_a_warning(
    lm: dspy.LM, make: Any, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    optimizer = make(verbose=True)
    result = optimizer.compile(dspy.Predict(Oracle), trainset=examples(40), valset=examples(3, 100)).detailed_results
    assert result.gain.low < 0 < result.gain.mean
    assert f"gain {result.gain}" in capsys.readouterr().err
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(f"No sure gain on the valset: {result.gain}. More examples would tell")


def test_sure_gain_is_not_warned_of(lm: dspy.LM, make: Any, caplog: pytest.LogCaptureFixture) -> None:
    result = make(num_steps=8).compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results
    assert result.gain.is_sure
    assert caplog.messages == []


# Who is chosen.


def test_candidate_that_lost_its_place_by_bad_luck_is_chosen_if_it_is_better_on_the_whole_valset() -> None:
    lucky = np.arange(64) < 7  # The first look is after 8 examples.
    best, gain = simulate(np.vstack([np.zeros(64), ~lucky, lucky]).astype(float))
    assert best == 1
    assert gain.mean == 57 / 64
    assert (gain.num_examples, gain.num_candidates) == (64, 2)


def test_tie_on_the_valset_goes_to_the_student() -> None:
    scores = np.vstack([np.arange(32) % 2, (np.arange(32) + 1) % 2]).astype(float)
    assert simulate(scores)[0] == 0


def test_best_so_far_is_kept_if_the_budget_ends_before_it_has_the_whole_valset(
    lm: dspy.LM, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(budget: Budget, metric_calls: int = 0) -> None:
        if metric_calls and not budget.reserve and budget.spent.metric_calls > 68:  # Nothing for the final choice.
            raise BudgetSpent

    monkeypatch.setattr(Budget, "check", check)
    optimizer = make(num_steps=8)
    result = optimizer.compile(dspy.Predict(Oracle), trainset=examples(40), valset=examples(60, 100)).detailed_results
    assert result.best_idx > 0
    assert result.gain.mean > 0
    assert result.gain.num_examples == result.num_val_examples[result.best_idx] < 60
    assert result.gain.low < 0.5 < result.gain.mean


# The gain on a testset.


@pytest.mark.parametrize("form", ["before", "after"])
def test_evaluate_scores_student_and_optimised_program_whichever_is_given(lm: dspy.LM, make: Any, form: str) -> None:
    program = dspy.Predict(Oracle)
    optimized = make(num_steps=8).compile(program, trainset=examples(40))
    counting = CountingMetric()
    asked = len(lm.engine.log)
    found = optimized.detailed_results.evaluate(
        program if form == "before" else optimized, examples(30, 200), metric=counting, num_threads=3
    )
    assert (found.before, found.after, found.gain.mean) == (0, 1, 1)
    assert (found.gain.low, found.gain.high) == paired_interval([0.0] * 30, [1.0] * 30)
    assert (found.gain.num_examples, found.gain.num_candidates, found.num_failed) == (30, 1, 0)
    assert found.spent.metric_calls == counting.calls == 60
    assert found.spent.lm_calls == len(lm.engine.log) - asked == 60
    assert program.signature.instructions == "Answer the question."


def test_evaluate_warns_of_a_gain_that_may_be_chance_and_of_a_loss(
    lm: dspy.LM, make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    program = dspy.Predict(Oracle)
    result = make(num_steps=8).compile(program, trainset=examples(40)).detailed_results
    solved = examples(20, 200)
    unsolvable = [dspy.Example(question=each.question, answer="unknown").with_inputs("question") for each in solved]
    gains = [result.evaluate(program, testset, metric=metric).gain for testset in (solved[:2], unsolvable, solved)]
    assert [gain.is_sure for gain in gains] == [False, False, True]
    assert gains[1].high < 0
    assert [message.split(". ")[0] for message in caplog.messages] == [
        f"No sure gain on the testset: {gain}" for gain in gains[:2]
    ]


def test_evaluate_runs_a_student_that_was_returned_once_and_gives_no_gain(
    make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with dspy.context(lm=scripted_lm(USELESS)):
        program = dspy.Predict(Oracle.with_instructions(SOLVED.split("\n")[0]))
        result = make().compile(program, trainset=examples(40)).detailed_results
        found = result.evaluate(program, examples(10, 200), metric=metric)
    assert found.before == found.after == 0.2
    assert (found.gain.low, found.gain.high, found.spent.metric_calls) == (0, 0, 10)
    assert caplog.messages == []


def test_evaluate_gives_examples_that_fail_the_failure_score_and_counts_them(make: Any) -> None:
    def fragile(example: Any, pred: Any) -> float:
        if "gamma" in example.question and pred.answer == "unknown":
            raise KeyError("no gamma today")
        return float(pred.answer == example.answer)

    with dspy.context(lm=scripted_lm()):
        program = dspy.Predict(Oracle)
        optimizer = make(num_steps=8, score_range=(-1, 1), failure_score=-0.5)
        result = optimizer.compile(program, trainset=examples(40)).detailed_results
        found = result.evaluate(program, examples(10, 200), metric=fragile)
    assert found.num_failed == 2
    assert found.before == pytest.approx(-0.1)
    assert found.after == 1


def test_evaluate_leaves_out_examples_lost_to_a_failing_model_and_counts_them(make: Any) -> None:
    with dspy.context(lm=scripted_lm()):
        program = dspy.Predict(Oracle)
        result = make(num_steps=8).compile(program, trainset=examples(40)).detailed_results

    def away(system: str, user: str) -> str:
        if "203:" in user:
            raise TransportError("reset")
        return world()(system, user)

    with dspy.context(lm=scripted_lm(away)):
        found = result.evaluate(program, examples(10, 200), metric=metric)
    assert (found.before, found.after, found.num_lost, found.num_failed) == (0, 1, 1, 0)
    assert found.gain.num_examples == 9


def test_evaluate_takes_a_metric_of_gepa(lm: dspy.LM, make: Any) -> None:
    def of_gepa(gold: Any, pred: Any, trace: Any, pred_name: Any, pred_trace: Any) -> Any:
        return metric(gold, pred)

    program = dspy.Predict(Oracle)
    result = make(num_steps=8).compile(program, trainset=examples(40)).detailed_results
    assert result.evaluate(program, examples(5, 200), metric=of_gepa).after == 1


@pytest.mark.parametrize(
    ("testset", "arguments", "error", "message"),
    [
        ([], {"metric": metric}, ValueError, "`testset` must hold at least one example"),
        ([dspy.Example(question="?")], {"metric": metric}, ValueError, r"testset\[0\] has no inputs"),
        ([{"question": "?"}], {"metric": metric}, TypeError, r"testset\[0\] must be a dspy.Example"),
        (examples(2), {"metric": None}, TypeError, "`metric` must be callable"),
        (examples(2), {"metric": lambda example, pred: 37}, ValueError, r"returned 37.0 for testset\[[01]\]"),
    ],
)
def test_evaluate_refuses_what_cannot_be_scored(
    lm: dspy.LM, make: Any, testset: Any, arguments: Any, error: type[Exception], message: str
) -> None:
    program = dspy.Predict(Oracle)
    result = make(num_steps=1).compile(program, trainset=examples(40)).detailed_results
    with pytest.raises(error, match=message):
        result.evaluate(program, testset, **arguments)


def test_gain_is_part_of_the_result_as_json(lm: dspy.LM, make: Any) -> None:
    result = make().compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results
    plain = json.loads(json.dumps(result.to_dict()))
    assert plain["gain"]["low"] == result.gain.low


# How it is read.


def test_result_has_the_score_of_each_validation_example_before_and_after(lm: dspy.LM, make: Any) -> None:
    valset = [*examples(14, 100), dspy.Example(question="What of topic alpha?", answer="nobody knows")]
    valset[-1] = valset[-1].with_inputs("question")
    result = make(num_steps=8).compile(dspy.Predict(Oracle), trainset=examples(40), valset=valset).detailed_results
    before, after = result.val_subscores[0], result.val_subscores[result.best_idx]
    assert before == dict.fromkeys((f"val:{index}" for index in range(15)), 0.0)
    assert after == {name: float(name != "val:14") for name in before}
    assert [len(scores) for scores in result.val_subscores] == list(result.num_val_examples)
    assert failing_of(result) == (
        "Still short of 1 (1 of 15 scored validation examples):\n  valset[14]: 0.000 -> 0.000"
    )


def test_what_a_notebook_prints_of_a_result_and_its_parts_is_short(lm: dspy.LM, make: Any) -> None:
    optimizer = make(num_steps=8)
    program = dspy.Predict(Oracle)
    result = optimizer.compile(program, trainset=examples(40)).detailed_results
    estimate = optimizer.estimate(program, trainset=examples(40))
    diagnosis = optimizer.diagnose(program, trainset=examples(40), num_calls=4)
    for shown in map(repr, (result, result.gain, result.spent, result.explain(), estimate, diagnosis)):
        assert len(shown) < 320
        assert "\n" not in shown
    assert repr(result).startswith("DLPOResult(Predict: valset 0.000 (all 16) -> 1.000 (all 16), gain +1.000 (95 %")
    assert repr(result.explain()) == "Explanation(self: 6 sentences; print it to read it)"


def test_explanation_does_not_repeat_a_sentence_as_its_own_complaint(lm: dspy.LM, make: Any) -> None:
    result = make(num_steps=8).compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results
    told = str(result.explain())
    for sentence in SOLVED.split("\n"):
        assert told.count(sentence) == 1
    assert "    for train:" in told


def test_explanation_of_what_a_model_wrote_does_not_steer_the_terminal() -> None:
    shown = str(Explanation({"self": (Origin("Be brief.\x1b[2J", 0, "id", Edit("add", 0, "", reason="\x9b31m red")),)}))
    assert "\\x1b[2J" in shown
    assert "\\x9b31m red" in shown
    assert all(letter.isprintable() or letter == "\n" for letter in shown)
