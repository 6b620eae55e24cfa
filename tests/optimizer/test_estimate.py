from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import dspy
import pytest
from dspy.lm15 import Request, Response, Usage

from dspy_dlpo.core.records import Spending
from dspy_dlpo.core.tokens import count_tokens
from tests.scripted import Oracle, ScriptedEngine, examples, fields, scripted_lm, world

FACTOR = 3
LIMITS: list[dict[str, Any]] = [
    {"num_steps": 4},
    {"max_metric_calls": 200},
    {"max_lm_calls": 250},
    {"max_tokens": 40_000},
    {"max_cost": 0.1},
]


class TokenEngine(ScriptedEngine):
    """Reports tokens, where the scripted engine reports characters."""

    def complete(self, request: Request) -> Response:
        response = super().complete(request)
        sent = "".join(self.log[-1])
        usage = Usage(input_tokens=count_tokens(sent), output_tokens=count_tokens(response.message.text or ""))
        return dataclasses.replace(response, usage=usage)


def never(system: str, user: str) -> str:
    return fields(answer="never")


@pytest.mark.parametrize(
    ("script", "limits"),
    [
        *((world(), limits) for limits in LIMITS),
        *((world(program=never), limits) for limits in [*LIMITS, {"auto": "light"}]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_estimate_is_within_a_factor_of_three_of_what_is_spent(make: Any, script: Any, limits: dict[str, Any]) -> None:
    lm = dspy.LM("scripted/model", engine=TokenEngine(script), cache=False)
    with dspy.context(lm=lm):
        optimizer = make(**limits, prices={"scripted/model": (1.0, 4.0)}, num_threads=1)
        data = {"trainset": examples(100), "valset": examples(40, 200)}
        estimate = optimizer.estimate(dspy.Predict(Oracle), **data)
        assert lm.engine.log == []
        spent = optimizer.compile(dspy.Predict(Oracle), **data).detailed_results.spent
    for name in ("metric_calls", "lm_calls", "tokens", "cost"):
        assert 1 / FACTOR < getattr(estimate.expected, name) / getattr(spent, name) < FACTOR, name


@pytest.mark.parametrize(
    ("name", "limit"), [("max_metric_calls", 300), ("max_lm_calls", 300), ("max_tokens", 50_000), ("max_cost", 0.1)]
)
def test_estimate_keeps_to_every_limit(lm: dspy.LM, make: Any, name: str, limit: float) -> None:
    optimizer = make(**{name: limit}, num_steps=50, prices={"scripted/model": (1.0, 4.0)})
    estimate = optimizer.estimate(dspy.Predict(Oracle), trainset=examples(40))
    assert getattr(estimate.expected, name.removeprefix("max_")) == pytest.approx(limit, rel=0.01)
    assert estimate.num_steps < 50


def test_estimate_by_the_clock_says_what_it_takes_for_granted(lm: dspy.LM, make: Any) -> None:
    estimate = make(max_seconds=100, num_threads=4).estimate(dspy.Predict(Oracle), trainset=examples(40))
    assert estimate.expected.lm_calls == pytest.approx(400, rel=0.01)
    assert "An LM call takes 1 second; 4 run at once." in estimate.assumptions


def test_estimate_counts_longer_prompts_and_more_predictors(lm: dspy.LM, make: Any) -> None:
    class Twice(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.note, self.solve = dspy.Predict("question -> remark"), dspy.Predict(Oracle)

    short, long = dspy.Predict(Oracle), dspy.Predict(Oracle.with_instructions("Answer the question. " * 100))
    once, wordy, twice = (make().estimate(each, trainset=examples(40)).expected for each in (short, long, Twice()))
    assert wordy.input_tokens > once.input_tokens + 300 * once.lm_calls
    assert twice.metric_calls == once.metric_calls
    assert twice.lm_calls > 1.9 * once.lm_calls


def test_several_failures_in_one_critic_call_are_fewer_and_longer_calls(lm: dspy.LM, make: Any) -> None:
    foretold = [
        make(num_steps=10, batch_size=8, critic_chunk_size=size)
        .estimate(dspy.Predict(Oracle), trainset=examples(40))
        .expected
        for size in (1, 4)
    ]
    assert foretold[0].lm_calls - foretold[1].lm_calls == 10 * (4 - 1)
    assert foretold[0].metric_calls == foretold[1].metric_calls
    assert foretold[1].tokens < foretold[0].tokens


def test_reply_is_taken_to_be_no_longer_than_the_model_may_write(make: Any) -> None:
    with dspy.context(lm=scripted_lm(max_tokens=5)):
        expected = make().estimate(dspy.Predict(Oracle), trainset=examples(40)).expected
    assert expected.output_tokens == pytest.approx(5 * expected.lm_calls, rel=0.01)


def test_unknown_price_leaves_the_dollars_open_and_is_named(lm: dspy.LM, make: Any) -> None:
    estimate = make().estimate(dspy.Predict(Oracle), trainset=examples(40))
    assert estimate.expected.cost is None
    assert "The price of scripted/model is unknown: give it with `prices`." in str(estimate)


def test_foretold_and_spent_stand_side_by_side(lm: dspy.LM, make: Any) -> None:
    optimizer = make(max_cost=0.5, prices={"scripted/model": (1.0, 4.0)})
    estimate = optimizer.estimate(dspy.Predict(Oracle), trainset=examples(40))
    table = estimate.against(Spending(123, 456, 7000, 89, cost=0.25)).splitlines()
    assert table[0].split() == ["limit", "expected", "spent"]
    assert table[1].split() == ["metric", "calls", "none", f"{estimate.expected.metric_calls:,}", "123"]
    assert table[3].split()[-1] == "7,089"
    assert table[4].split() == ["dollars", "$0.50", "$0.50", "$0.25"]


def test_import_and_estimate_import_no_litellm() -> None:
    code = """
import sys
import dspy
by_dspy = "litellm" in sys.modules
import dspy_dlpo
trainset = [dspy.Example(question=f"Question {n}", answer="a").with_inputs("question") for n in range(20)]
lm = dspy.LM("openai/gpt-4o-mini", api_key="none")
with dspy.context(lm=lm):
    optimizer = dspy_dlpo.DLPOOptimizer(metric=lambda example, pred, trace=None: 1.0, max_cost=1.0)
    estimate = optimizer.estimate(dspy.Predict("question -> answer"), trainset=trainset)
print(estimate.expected.cost > 0, by_dspy or "litellm" not in sys.modules)
"""
    told = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert told.split() == ["True", "True"]
