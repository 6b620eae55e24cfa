"""What is known of the code that a run was made with: a change is seen, a run of it is no change."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import dspy
import httpx
import pytest

from dspy_dlpo.runtime.source import Source, harmless
from tests.scripted import scripted_lm

CALLS = 0
LIMIT = 3


class Base(dspy.Module):  # type: ignore[misc]  # DSPy is untyped.
    def forward(self, question: str) -> Any:
        return self.answer(question=question)


class Retrieve(Base):
    def __init__(self, k: int, tools: Any = ()) -> None:
        super().__init__()
        self.k, self.tools = k, tools
        self.answer = dspy.Predict("question -> answer")
        self.num_calls = 0

    def forward(self, question: str) -> Any:
        self.num_calls += 1
        return super().forward(question)


class Judge(dspy.Module):  # type: ignore[misc]  # DSPy is untyped.
    def __init__(self, lm: dspy.LM) -> None:
        super().__init__()
        self.judge = dspy.Predict("answer -> score: float")
        self.judge.lm = lm

    def forward(self, example: dspy.Example, pred: Any) -> float:
        return float(self.judge(answer=pred.answer).score)


class Counting:
    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.calls: int = 0
        self.asked: set[str] = set()

    def __call__(self, example: dspy.Example, pred: Any) -> float:
        self.calls += 1
        return self.weight


class Inheriting(Counting):
    pass


@dataclass
class Threshold:
    limit: float

    def score(self, example: dspy.Example, pred: Any) -> bool:
        return len(pred.answer) < self.limit


def halved(metric: Callable[..., float]) -> Callable[..., float]:
    @functools.wraps(metric)
    def wrapper(*args: Any) -> float:
        return metric(*args) / 2

    return wrapper


def with_limit(limit: int) -> Callable[..., bool]:
    def metric(example: dspy.Example, pred: Any, *, limit: int = limit) -> bool:
        return len(pred.answer) < limit

    return metric


def plus_one(number: int) -> int:
    return number + 1


def plus_two(number: int) -> int:
    return number + 2


def judged_by(lm: dspy.LM) -> Callable[..., float]:
    return lambda example, pred: float(lm(str(pred))[0])


def counting() -> Callable[..., int]:
    calls = 0

    def metric(example: dspy.Example, pred: Any) -> int:
        nonlocal calls
        calls += 1
        return calls

    return metric


def recursive() -> Callable[..., int]:
    def depth(value: Any) -> int:
        return 1 + max(map(depth, value)) if isinstance(value, list) else 0

    return lambda example, pred: depth(pred)


def global_counter(example: dspy.Example, pred: Any) -> int:
    global CALLS
    CALLS += 1
    return CALLS


def limited(example: dspy.Example, pred: Any) -> bool:
    return plus_one(len(pred.answer)) < LIMIT


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Retrieve(3), Retrieve(5)),
        (Retrieve(3, [dspy.Tool(plus_one)]), Retrieve(3, [dspy.Tool(plus_two)])),
        (judged_by(scripted_lm()), judged_by(scripted_lm(temperature=0.5))),
        (Judge(scripted_lm()), Judge(scripted_lm(temperature=0.5))),
        (Counting(1.0), Counting(0.5)),
        (counting(), recursive()),
        (Threshold(1).score, Threshold(2).score),
        (plus_one, halved(plus_one)),
        (with_limit(1), with_limit(2)),
        (functools.cache(plus_one), functools.cache(plus_two)),
    ],
    ids=[
        "attribute",
        "tool",
        "model in a closure",
        "model of a module",
        "object",
        "function",
        "dataclass",
        "wrapper",
        "keyword",
        "cache",
    ],
)
def test_other_settings_give_another_text(one: Any, other: Any) -> None:
    assert Source().text(one) == Source().text(one)
    assert Source().text(one) != Source().text(other)


@pytest.mark.parametrize(("name", "value"), [("plus_one", plus_two), ("LIMIT", 4)], ids=["helper function", "constant"])
def test_what_a_function_names_is_in_its_text(monkeypatch: pytest.MonkeyPatch, name: str, value: Any) -> None:
    before = Source().text(limited)
    monkeypatch.setitem(globals(), name, value)
    assert Source().text(limited) != before


def test_object_of_an_installed_package_is_known_by_its_class() -> None:
    assert Source().text(Retrieve(3, [httpx.Client(timeout=1)])) == Source().text(
        Retrieve(3, [httpx.Client(timeout=2)])
    )


def test_text_of_a_class_holds_what_it_inherits() -> None:
    assert "return self.answer(question=question)" in Source().text(Retrieve(3))
    assert "len(pred.answer) < self.limit" in Source().text(Threshold(1).score)


@pytest.mark.parametrize("metric", [Counting(1.0), Inheriting(1.0), counting(), global_counter])
def test_counter_of_calls_does_not_change_the_text(metric: Callable[..., Any]) -> None:
    before = Source().text(metric)
    metric(dspy.Example(), None)
    assert Source().text(metric) == before


def test_call_of_a_program_does_not_change_its_text() -> None:
    program = Retrieve(3)
    before = Source().text(program)
    with dspy.context(lm=scripted_lm(lambda system, user: "[[ ## answer ## ]]\nyes")):
        program(question="?")
    assert program.num_calls == 1
    assert Source().text(program) == before


def test_function_that_calls_itself_has_a_text() -> None:
    assert "max(map(depth, value))" in Source().text(recursive())


def test_text_is_the_same_in_every_process() -> None:
    code = """
from dspy_dlpo.runtime.source import Source
class Plain:
    def __init__(self): self.size = 3
print(Source().text({"words": {"one", "two", "three"}, "thing": Plain(), "code": print}))
"""
    said = {
        subprocess.check_output([sys.executable, "-c", code], env={"PYTHONHASHSEED": seed, "PATH": ""}, text=True)
        for seed in ("1", "2")
    }
    assert len(said) == 1
    assert "'size': 3" in said.pop()


def test_keys_and_addresses_of_a_model_are_left_out_and_everything_else_is_kept() -> None:
    lm = dspy.LM(
        "openai/gpt-4o",
        api_key="sk-1",
        api_base="http://x",
        extra_headers={"a": "b"},
        max_tokens=9,
        reasoning_effort="low",
    )
    assert {name for name, _ in harmless(lm)} >= {"max_tokens", "reasoning_effort"}
    assert not {"api_key", "api_base", "extra_headers"} & {name for name, _ in harmless(lm)}
