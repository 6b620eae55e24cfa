"""Scores, texts, errors and replies as they come: each costs its example at most, and none goes by in silence."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import dspy
import numpy as np
import pytest
from dspy.lm15 import (
    AuthError,
    BillingError,
    ContextLengthError,
    InvalidRequestError,
    Message,
    ProviderError,
    RateLimitError,
    Request,
    Response,
    TransportError,
    Usage,
)

from dspy_dlpo.benchmarks.simulation.scripted import SimulatedEngine
from dspy_dlpo.runtime.metric import Metric, MetricError, snapped
from tests.scripted import CountingMetric, Oracle, examples, fields, metric, role_of, scripted_lm, world

# Scores that miss a bound by rounding.

NEARLY = {
    "sum of shares": 0.7 + 0.2 + 0.1,
    "cosine of 32 bits": np.float32(1.0000002),
    "sum of tenths": sum([0.1] * 10),
    "mean of 32 bits": np.ones(7, dtype=np.float32).sum() / np.float32(7.0000005),
    "array of one": np.array([0.99999999]),
}


@pytest.mark.parametrize("score", NEARLY.values(), ids=NEARLY)
def test_program_that_is_perfect_but_for_rounding_is_perfect(make: Any, score: Any) -> None:
    calls = []

    def scored(example: dspy.Example, prediction: Any) -> Any:
        calls.append(score)
        return score

    with dspy.context(lm=(lm := scripted_lm())):
        result = make(metric=scored, auto="light").compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results
    assert result.stopped == "the program is perfect on the whole trainset"
    assert lm.engine.count("critic") == 0
    assert set(result.val_aggregate_scores) == {1.0}
    assert not any(record.failures for record in result.history)


@pytest.mark.parametrize(
    ("score_range", "score", "expected"),
    [
        ((0, 1), -1e-9, 0.0),
        ((-1, 1), -1.0000002, -1.0),
        ((0, 100), 99.99999999, 100.0),
        ((0, 0.3), 0.1 + 0.2, 0.3),
        ((0, 1), 0.5, 0.5),
        ((0, 1), 0.9999, 0.9999),
    ],
)
def test_score_that_equals_a_bound_but_for_rounding_is_the_bound(
    score_range: tuple[float, float], score: float, expected: float
) -> None:
    found, _ = Metric(lambda example, prediction: score, score_range)(dspy.Example(), None, "train:0")
    assert found == expected


@pytest.mark.parametrize("score", [1.001, -0.001, float("nan"), float("inf"), np.array([0.5, 0.5])])
def test_score_that_is_out_of_range_or_no_number_is_refused(score: Any) -> None:
    with pytest.raises(MetricError, match=r"trainset\[0\]"):
        Metric(lambda example, prediction: score, (0, 1))(dspy.Example(), None, "train:0")


def test_mean_of_repeats_at_a_bound_is_the_bound() -> None:
    top = 0.1 * 3
    assert snapped(sum([top] * 7) / 7, (0.0, top)) == top


def test_diagnosis_of_a_perfect_program_finds_no_headroom(make: Any) -> None:
    with dspy.context(lm=scripted_lm()):
        found = make(metric=lambda example, prediction: 0.7 + 0.2 + 0.1).diagnose(
            dspy.Predict(Oracle), trainset=examples(30)
        )
    assert found.headroom == 0
    assert "every run reached the top" in found.warnings[0]


# Options of a metric.


def with_option(example: Any, prediction: Any, trace: Any = None, partial_credit: bool = True) -> float:
    return 1.0 if partial_credit is True and trace is None else 0.0


def with_two(example: Any, prediction: Any, trace: Any = None, weight: float = 1.0, strict: bool = False) -> float:
    return weight


def without_trace(example: Any, prediction: Any, strict: bool = True) -> float:
    return 1.0 if strict is True else 0.0


def of_gepa(gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> float:
    return 1.0


def of_gepa_by_position(one: Any, two: Any, three: Any, four: Any, five: Any) -> float:
    return 1.0


def of_gepa_with_program(
    gold: Any, pred: Any, trace: Any, pred_name: Any, pred_trace: Any, program_trace: Any = None, weight: float = 1.0
) -> float:
    return weight


@pytest.mark.parametrize(
    ("function", "number"),
    [
        (with_option, 3),
        (with_two, 3),
        (without_trace, 2),
        (of_gepa, 5),
        (of_gepa_by_position, 5),
        (of_gepa_with_program, 5),
        (lambda *arguments: 1.0, 3),
        (lambda example, prediction, **options: 1.0, 2),
        (lambda example, prediction, *, strict=True: 1.0 if strict else 0.0, 2),
    ],
    ids=["option", "two", "no trace", "gepa", "positions", "program trace", "any", "keywords", "keyword option"],
)
def test_options_of_a_metric_keep_their_defaults(function: Callable[..., float], number: int) -> None:
    asked = Metric(function, (0, 1))
    assert asked.num_arguments == number
    assert asked(dspy.Example(), None, "train:0") == (1.0, "")


@pytest.mark.parametrize(
    "function",
    [lambda example: 1.0, lambda example, prediction, *, needed: 1.0, lambda a, b, c, d: 1.0],
    ids=["one", "needs a keyword", "four"],
)
def test_metric_of_another_form_is_refused(function: Any) -> None:
    with pytest.raises(TypeError, match=r"`metric` must take \(example, pred\)"):
        Metric(function, (0, 1))


# Errors on some examples.


def test_error_of_the_metric_on_some_examples_is_told_once_with_the_example_and_counted(
    make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def misspelt(example: dspy.Example, prediction: Any, trace: object = None) -> Any:
        return metric(example, prediction) if "alpha" not in example.question else prediction.anwser

    optimizer = make(metric=misspelt, num_steps=2, log_dir=tmp_path)
    with dspy.context(lm=scripted_lm()):
        result = optimizer.compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results
    told = [each.getMessage() for each in caplog.records if "The metric raised" in each.getMessage()]
    assert len(told) == 1
    assert "AttributeError" in told[0]
    assert "trainset[" in told[0]
    assert "logging.DEBUG" in told[0]
    assert 0 < result.history[0].errors <= result.history[-1].errors <= result.errors
    assert result.history[-1].numbers()["errors"] == result.history[-1].errors
    caplog.clear()
    with dspy.context(lm=scripted_lm()):
        again = optimizer.compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results
    assert again.errors == result.errors, "a resumed run counts them too"


def test_traceback_of_an_error_is_in_the_debug_log(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.answer = dspy.Predict(Oracle)

        def forward(self, question: str) -> Any:
            answer = self.answer(question=question)
            return answer if "alpha" not in question else {}["missing"]

    with dspy.context(lm=scripted_lm()), caplog.at_level(logging.DEBUG, "dspy_dlpo"):
        make(num_steps=1).compile(Broken(), trainset=examples(40))
    assert 'answer if "alpha" not in question else {}["missing"]' in caplog.text


def test_judge_in_the_metric_whose_reply_cannot_be_parsed_stops_after_the_first_minibatch(make: Any) -> None:
    judge = dspy.Predict("answer -> grade: float")

    def judged(example: dspy.Example, prediction: Any, trace: object = None) -> float:
        return float(judge(answer=prediction.answer).grade)

    def unclear(system: str, user: str) -> str:
        return "No grade today." if "`grade`" in system else world()(system, user)

    lm = scripted_lm(unclear)
    failed = pytest.raises(RuntimeError, match=r"all 8 examples .* The metric raised AdapterParseError")
    with dspy.context(lm=lm), failed:
        make(metric=judged).compile(dspy.Predict(Oracle), trainset=examples(40))
    assert lm.engine.count("critic") == 0


# Texts that no encoding knows.

HALF = "\ud83d"


def with_half(where: str) -> Callable[[str, str], str]:
    """Play the world, but with half a character in every reply of a role; `json` escapes it on its way."""

    def answer(system: str, user: str) -> str:
        reply = world()(system, user)
        return (
            reply.replace("unknown", f"{HALF} unknown").replace(". ", f"{HALF}. ")
            if role_of(system) == where
            else reply
        )

    return answer


@pytest.mark.parametrize("on_disk", [True, False])
@pytest.mark.parametrize("where", ["example", "label", "program", "critic", "proposer", "feedback", "error"])
def test_half_a_character_costs_its_example_at_most_also_on_resume(
    make: Any, tmp_path: Path, where: str, on_disk: bool
) -> None:
    trainset = examples(40)
    if where in ("example", "label"):
        field = "question" if where == "example" else "answer"
        trainset[3] = trainset[3].copy(**{field: f"{HALF} {trainset[3][field]}"})

    def said(example: dspy.Example, prediction: Any, trace: object = None) -> Any:
        if where == "error" and "beta" in example.question:
            raise ValueError(f"no {HALF} answer")
        found = metric(example, prediction)
        return dspy.Prediction(
            score=found.score, feedback=f"{found.feedback} {HALF}" if where == "feedback" else found.feedback
        )

    student = dspy.Predict(Oracle)
    optimizer = make(metric=said, num_steps=3, log_dir=tmp_path if on_disk else None)
    results = []
    for _ in range(2 if on_disk else 1):
        with dspy.context(lm=scripted_lm(with_half(where))):
            results.append(optimizer.compile(student, trainset=trainset, valset=examples(10, 100)).detailed_results)
        json.dumps(results[-1].to_dict())
    assert len(results[0].history) == 3
    assert results[0].best_candidate == results[-1].best_candidate


# Failing calls of critic and proposer.

FAILURES = {
    "filtered": InvalidRequestError("content filter"),
    "too long": ContextLengthError("too long"),
    "rate limit": RateLimitError("slow down"),
    "reset": TransportError("connection reset"),
}


def failing_role(role: str, error: Exception, when: Callable[[int], bool]) -> Callable[[str, str], str]:
    number, criticised = count(), count()

    def answer(system: str, user: str) -> str:
        if role_of(system) == role and when(next(number)):
            raise error
        if role_of(system) == "critic" and role == "proposer" and next(criticised) < 8:
            return fields(requirements="- The answer must be a number.")  # It does not help, so the proposer is asked.
        return world()(system, user)

    return answer


@pytest.mark.parametrize("error", FAILURES.values(), ids=FAILURES)
@pytest.mark.parametrize("role", ["critic", "proposer"])
def test_failed_call_of_critic_or_proposer_leaves_the_run_its_other_sources(
    make: Any, role: str, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    first = 8 if role == "critic" else 1
    with dspy.context(lm=scripted_lm(failing_role(role, error, lambda number: number < first))):
        result = make(num_steps=5).compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results
    assert result.stopped in ("5 steps are done", "the program is perfect on the whole trainset")
    assert result.val_aggregate_scores[result.best_idx] > result.val_aggregate_scores[0]
    assert result.history[-1].unparsed == first
    assert caplog.text.count(f"of the {role} failed") == 1


def test_proposer_that_refuses_for_ever_does_not_end_the_run(make: Any) -> None:
    error = FAILURES["filtered"]
    with dspy.context(lm=scripted_lm(failing_role("proposer", error, lambda number: True))):
        result = make(num_steps=6).compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results
    assert result.val_aggregate_scores[result.best_idx] == 1, "by the critic's own sentences"


@pytest.mark.parametrize("error", [*FAILURES.values(), KeyError("of a critic of the user's")], ids=[*FAILURES, "bug"])
def test_lasting_outage_of_the_critic_ends_the_run_with_the_best_so_far(
    make: Any, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    partial = world(program=lambda system, user: world()(system, user).replace("55", "no"))
    number = count()

    def answer(system: str, user: str) -> str:
        if role_of(system) == "critic" and next(number) >= 8:
            raise error
        return partial(system, user)

    with dspy.context(lm=scripted_lm(answer)):
        optimized = make(num_steps=20).compile(dspy.Predict(Oracle), trainset=examples(40))
    result = optimized.detailed_results
    assert "Critic could not be reached in 3 rounds in a row" in result.stopped
    assert result.val_aggregate_scores[result.best_idx] > 0.5
    assert optimized.signature.instructions != Oracle.instructions
    assert "The run ends early, with the best so far" in caplog.text


@pytest.mark.parametrize("error", [BillingError("no credit"), AuthError("key revoked")], ids=["billing", "key"])
@pytest.mark.parametrize("role", ["program", "critic", "proposer"])
def test_account_that_ends_in_mid_run_ends_it_with_the_best_so_far(make: Any, role: str, error: Exception) -> None:
    partial = world(program=lambda system, user: world()(system, user).replace("55", "no"))
    number, first = count(), {"program": 90, "critic": 8, "proposer": 1}[role]

    def answer(system: str, user: str) -> str:
        if role_of(system) == role and next(number) >= first:
            raise error
        return partial(system, user)

    with dspy.context(lm=scripted_lm(answer)):
        optimized = make(num_steps=20, num_threads=1).compile(dspy.Predict(Oracle), trainset=examples(40))
    assert str(error.args[0]) in optimized.detailed_results.stopped
    assert optimized.signature.instructions != Oracle.instructions


# Refusals in mid-run, and losses at its end.


@pytest.mark.parametrize("first", [60, 75, 100])
def test_model_that_refuses_everything_from_some_call_on_is_no_fault_of_the_program(
    make: Any, tmp_path: Path, first: int
) -> None:
    number = count()
    partial = world(program=lambda system, user: world()(system, user).replace("55", "no"))

    def answer(system: str, user: str) -> str:
        if next(number) >= first:
            raise InvalidRequestError("400: parameter no longer supported")
        return partial(system, user)

    optimizer = make(num_steps=12, log_dir=tmp_path, num_threads=1)
    with dspy.context(lm=(lm := scripted_lm(answer))):
        result = optimizer.compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results
    assert "400: parameter no longer supported" in result.stopped
    assert len(lm.engine.log) - first < 60
    assert result.val_aggregate_scores[result.best_idx] >= result.val_aggregate_scores[0]
    with dspy.context(lm=(lm := scripted_lm(partial))):
        result = optimizer.compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results
    assert result.stopped == "12 steps are done"
    assert len(lm.engine.log) > 0
    assert result.val_aggregate_scores[result.best_idx] > 0.6


def test_candidate_that_is_refused_everywhere_is_dropped_and_the_run_goes_on(make: Any) -> None:
    def answer(system: str, user: str) -> str:
        if role_of(system) == "program" and "topic is alpha" in system:
            raise ContextLengthError("too long")
        return world()(system, user)

    with dspy.context(lm=scripted_lm(answer)):
        result = make(num_steps=4).compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results
    assert result.stopped == "4 steps are done"


def test_losses_of_the_final_choice_are_told_counted_and_tried_again_by_the_same_call(
    make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    valset = examples(20, 100)
    down = {each.question for each in valset[:10]}

    def answer(system: str, user: str) -> str:
        if outage and any(each in user for each in down) and role_of(system) == "program" and "When" in system:
            raise TransportError("reset")
        return world()(system, user)

    results, outage = [], [True]
    for _ in range(2):
        with dspy.context(lm=scripted_lm(answer)):
            optimizer = make(num_steps=2, log_dir=tmp_path, max_trial_examples=8)
            results.append(
                optimizer.compile(dspy.Predict(Oracle), trainset=examples(40), valset=valset).detailed_results
            )
        outage.clear()
    assert results[0].lost > results[0].history[-1].lost
    assert "rollouts of the final choice were lost" in caplog.text
    settled = results[1].lost
    assert settled == results[0].history[-1].lost, "steps were built on these"
    assert results[1].num_val_examples[results[1].best_idx] == 20 - settled
    assert results[0].num_val_examples[results[0].best_idx] == 20 - results[0].lost


class CuttingEngine(SimulatedEngine):
    """Cuts off every fifth reply, and answers every seventh with nothing."""

    def complete(self, request: Request) -> Response:
        reply = super().complete(request)
        number = len(self.log)
        text = "" if number % 7 == 0 else reply.text or ""
        reason = "length" if number % 5 == 0 else "stop"
        message = Message.assistant(text)
        usage = Usage(input_tokens=1, output_tokens=1)
        return Response(id=None, model=request.model, message=message, finish_reason=reason, usage=usage)


def test_empty_and_cut_off_replies_are_counted(make: Any, tmp_path: Path) -> None:
    lm = dspy.LM("scripted/model", engine=CuttingEngine(world()), cache=False, num_retries=0)
    with dspy.context(lm=lm):
        optimizer = make(num_steps=2, num_threads=1, log_dir=tmp_path)
        result = optimizer.compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results
        asked = len(lm.engine.log)
        again = optimizer.compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results
    assert result.spent.cut_off_replies == asked // 5
    assert result.spent.empty_replies == asked // 7
    assert result.history[-1].numbers()["cut_off_replies"] > 0
    assert len(lm.engine.log) == asked
    assert again.spent.empty_replies == result.spent.empty_replies


def test_one_failure_of_the_only_first_question_does_not_end_the_run(make: Any) -> None:
    counting = CountingMetric()
    one_fails = [*examples(1), *examples(20, 1)]
    lm = scripted_lm(failing_role("critic", TransportError("reset"), lambda number: number == 0))
    with dspy.context(lm=lm):
        optimizer = make(metric=counting, num_steps=3, batch_size=1, num_threads=1)
        assert len(optimizer.compile(dspy.Predict(Oracle), trainset=one_fails).detailed_results.history) == 3


@pytest.mark.parametrize("num_retries", [0, 1, 3])
def test_broken_reply_is_asked_for_again_as_often_as_the_model_retries(make: Any, num_retries: int) -> None:
    tries = []

    def answer(system: str, user: str) -> str:
        if "\n0: What" in user and role_of(system) == "program" and "When" not in system:
            tries.append(user)
            raise ProviderError("cut off")
        return world()(system, user)

    with dspy.context(lm=scripted_lm(answer, num_retries=num_retries)):
        program = dspy.Predict(Oracle)
        make(num_steps=1, num_threads=1).compile(program, trainset=examples(8), valset=examples(4, 100))
    assert len(tries) == num_retries + 1


def test_reply_of_a_critic_that_breaks_the_parser_counts_as_no_reply(make: Any) -> None:
    def hostile(system: str, user: str) -> str:
        return "[" * 3000 if role_of(system) == "critic" and "1: What" in user else world()(system, user)

    with dspy.context(lm=scripted_lm(hostile)):
        result = make(num_steps=3).compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results
    assert result.stopped == "3 steps are done"
