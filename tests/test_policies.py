from __future__ import annotations

import json
import math
from typing import Any

import pytest

from dspy_dlpo import schedules
from dspy_dlpo.policies import PRESETS, Policy, StepContext, TextualLearningRate, TextualSimulatedAnnealing, as_policies
from dspy_dlpo.records import Candidate, Point, StepRecord, TextualGradient, UpdateRequest

TABLE = {
    "learning_rate": lambda: TextualLearningRate(2),
    "learning_rate_decay": lambda: TextualLearningRate(schedules.linear(4, 1, 3)),
    "annealing": TextualSimulatedAnnealing,
}
POLICIES = pytest.mark.parametrize("make_policy", TABLE.values(), ids=TABLE)
GRADIENT = TextualGradient("self", (Point("Be brief.", ("train:0",)),))
REQUEST = UpdateRequest("self", ("One. ", "Two."), GRADIENT)
INCUMBENT = Candidate({"self": "One. Two."})
CANDIDATE = Candidate({"self": "One. Two. Three."}, INCUMBENT.id)
RECORD = StepRecord(0, INCUMBENT.id, ("train:0",), 0.5, gradients=(GRADIENT,), requests=(REQUEST,))


def walk(policy: Policy, seed: int) -> list[Any]:
    state, seen = policy.init(), []
    for step in range(5):
        ctx = StepContext(step, seed)
        seen.append(policy.narrow(REQUEST, state, ctx))
        seen.append(policy.threshold(CANDIDATE, INCUMBENT, state, ctx))
        seen.append(policy.propose(REQUEST, state, ctx))
        state = policy.learn(RECORD, state)
        seen.append(state)
    return seen


@POLICIES
def test_any_policy_state_survives_a_json_round_trip(make_policy: Any) -> None:
    policy = make_policy()
    state = policy.learn(RECORD, policy.init())
    assert json.loads(json.dumps(state)) == state


@POLICIES
def test_any_policy_has_the_same_effect_with_the_same_seed(make_policy: Any) -> None:
    assert walk(make_policy(), seed=0) == walk(make_policy(), seed=0)


@POLICIES
def test_any_policy_keeps_nothing_of_a_run_on_itself(make_policy: Any) -> None:
    policy = make_policy()
    before = dict(vars(policy))
    assert walk(policy, seed=0) == walk(policy, seed=0)
    assert vars(policy) == before


@POLICIES
def test_any_policy_leaves_its_inputs_unchanged(make_policy: Any) -> None:
    before = repr((REQUEST, CANDIDATE, INCUMBENT, RECORD))
    walk(make_policy(), seed=3)
    assert repr((REQUEST, CANDIDATE, INCUMBENT, RECORD)) == before


def test_smaller_of_two_caps_holds_in_any_order() -> None:
    caps = TextualLearningRate(3), TextualLearningRate(1), TextualLearningRate(2)
    for policies in (caps, caps[::-1]):
        request = REQUEST
        for policy in policies:
            request = policy.narrow(request, policy.init(), StepContext(0, 0))
        assert request.max_edits == 1


def test_learning_rate_may_follow_a_schedule_and_is_rounded_down() -> None:
    policy = TextualLearningRate(lambda step: 3.9 - step)
    assert [policy.narrow(REQUEST, {}, StepContext(step, 0)).max_edits for step in range(3)] == [3, 2, 1]


def test_learning_rate_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="`max_edits` must be at least 1, but got max_edits=0"):
        TextualLearningRate(0)
    late = TextualLearningRate(lambda step: 7 - step)
    with pytest.raises(ValueError, match="max_edits=0 at step 7"):
        late.narrow(REQUEST, {}, StepContext(7, 0))


def threshold(policy: TextualSimulatedAnnealing, step: int, seed: int = 0) -> float:
    return policy.threshold(CANDIDATE, INCUMBENT, {}, StepContext(step, seed)).value


@pytest.mark.parametrize("temperature", [0.0, 0.01, 1.0, 64.0])
def test_annealing_accepts_every_improvement(temperature: float) -> None:
    policy = TextualSimulatedAnnealing(temperature)
    assert all(threshold(policy, step) <= 0 for step in range(200))


@pytest.mark.parametrize(("temperature", "drop"), [(1.0, 0.25), (1 / 16, 0.25), (0.05, 0.05)])
def test_annealing_accepts_a_drop_with_its_probability(temperature: float, drop: float) -> None:
    policy = TextualSimulatedAnnealing(temperature)
    accepted = sum(-drop > threshold(policy, 0, seed) for seed in range(4000)) / 4000
    assert accepted == pytest.approx(math.exp(-drop / temperature), abs=0.03)


def test_annealing_cools_at_every_step_and_refuses_large_drops_outright() -> None:
    policy = TextualSimulatedAnnealing(schedules.exponential(64, 0.5), max_drop=0.3)
    because = [policy.threshold(CANDIDATE, INCUMBENT, {}, StepContext(step, 0)).because for step in range(3)]
    assert [each["temperature"] for each in because] == [64, 32, 16]
    assert min(threshold(policy, 0, seed) for seed in range(100)) == -0.3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": -1.0}, "`temperature` must be at least 0, but got temperature=-1.0"),
        ({"temperature": float("nan")}, "`temperature` must be at least 0"),
        ({"max_drop": -0.1}, "`max_drop` must be at least 0"),
    ],
)
def test_annealing_refuses_settings_out_of_range(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextualSimulatedAnnealing(**arguments)


def test_every_preset_is_a_fresh_list_of_policies() -> None:
    for name in PRESETS:
        assert all(isinstance(policy, Policy) for policy in as_policies(name))


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (schedules.constant(2), [2, 2, 2, 2, 2]),
        (schedules.linear(4, 1, 3), [4, 3, 2, 1, 1]),
        (schedules.cosine(4, 0, 4), [4, 3.4142, 2, 0.5858, 0]),
        (schedules.exponential(8, 0.5, end=2), [8, 4, 2, 2, 2]),
        (schedules.step(8, 0.5, every=2), [8, 8, 4, 4, 2]),
        (schedules.warm_up(schedules.constant(3), 2), [1, 2, 3, 3, 3]),
    ],
    ids=["constant", "linear", "cosine", "exponential", "step", "warm-up"],
)
def test_schedules_have_the_values_they_promise(schedule: Any, values: list[float]) -> None:
    assert [schedule(index) for index in range(5)] == pytest.approx(values, abs=1e-4)


@pytest.mark.parametrize(
    ("make_schedule", "message"),
    [
        (lambda: schedules.linear(1, 0, 0), "`num_steps` must be at least 1, but got num_steps=0"),
        (lambda: schedules.exponential(1, 1.5), r"`factor` must be in \(0, 1\], but got factor=1.5"),
        (lambda: schedules.step(1, 0.5, 0), "`every` must be at least 1"),
    ],
)
def test_schedule_with_wrong_settings_is_refused(make_schedule: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_schedule()
