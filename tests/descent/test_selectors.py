from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from dspy_dlpo.core.records import Point, TextualGradient, UpdateRequest
from dspy_dlpo.core.steps import StepRecord
from dspy_dlpo.descent.selectors import SELECTORS
from dspy_dlpo.policies import StepContext
from tests.runtime.test_programs import one_step, two_steps
from tests.scripted import replying

POINTS = (Point("Be brief.", ("train:0",)),)
GRADIENTS = [
    TextualGradient("a", POINTS, blame=0.25),
    TextualGradient("b", POINTS, blame=1.0),
    TextualGradient("c", POINTS, blame=0.5),
]


def moved(selector: str, gradients: Sequence[TextualGradient] = GRADIENTS, num_steps: int = 2000) -> list[str]:
    """Return the predictors that move, in each of many steps."""
    history: list[StepRecord] = []
    found = []
    for step in range(num_steps):
        moving = SELECTORS[selector](gradients, StepContext(step, seed=0), history)
        found.append("".join(each.predictor for each in moving))
        requests = tuple(UpdateRequest(each.predictor, (), each) for each in moving)
        history = [*history[-5:], StepRecord(step, "incumbent", (), 0.5, requests=requests)]
    return found


def test_blame_moves_the_most_blamed_always_and_others_in_proportion() -> None:
    steps = moved("blame")
    share = {name: sum(name in step for step in steps) / len(steps) for name in "abc"}
    assert share == {"a": pytest.approx(0.25, abs=0.03), "b": 1.0, "c": pytest.approx(0.5, abs=0.03)}
    assert steps == moved("blame")


def test_round_robin_moves_each_in_turn() -> None:
    assert moved("round_robin", num_steps=6) == ["a", "b", "c", "a", "b", "c"]


def test_round_robin_starves_none_that_has_a_gradient_now_and_then() -> None:
    a, b, _ = GRADIENTS
    history: list[StepRecord] = []
    found = ""
    for step in range(6):
        (moving,) = SELECTORS["round_robin"]([a, b] if step % 2 == 0 else [a], StepContext(step, seed=0), history)
        found += moving.predictor
        requests = (UpdateRequest(moving.predictor, (), moving),)
        history.append(StepRecord(step, "incumbent", (), 0.5, requests=requests))
    assert found == "aababa"


def test_all_moves_every_predictor_with_a_gradient() -> None:
    assert Counter(moved("all")) == {"abc": 2000}


@pytest.mark.parametrize("selector", SELECTORS)
def test_nothing_moves_where_there_is_no_gradient(selector: str) -> None:
    assert moved(selector, [], num_steps=1) == [""]


def test_selector_of_ones_own_decides_what_moves(make: Any) -> None:
    def last(gradients: Sequence[TextualGradient], *others: object) -> Sequence[TextualGradient]:
        return gradients[-1:]

    script = replying(requirements="Be brief.", input_complaint="Too vague.")
    record = one_step(make, two_steps(), script, component_selector=last)
    assert [gradient.predictor for gradient in record.gradients] == ["find", "say"]
    assert [request.predictor for request in record.requests] == ["say"]


@pytest.mark.parametrize("selector", ["loudest", None])
def test_unknown_selector_is_refused(make: Any, selector: Any) -> None:
    with pytest.raises(ValueError, match=r"`component_selector` must be a callable or one of .*'all', 'blame'"):
        make(component_selector=selector)
