from __future__ import annotations

import itertools
import math
import random
from statistics import fmean, stdev
from typing import Any

import dspy
import pytest

from dspy_dlpo.core.records import Spending
from dspy_dlpo.optimizer.diagnose import Diagnosis, rounds
from tests.scripted import SECRETS, CountingMetric, Oracle, examples, fields, scripted_lm, world

SOLVED = "\n".join(f"When the topic is {topic}, answer {secret}." for topic, secret in SECRETS.items())


def diagnosis(*scores: tuple[float, ...], num_val_examples: int = 50, errors: tuple[str, ...] = ()) -> Diagnosis:
    named = {f"train:{index}": each for index, each in enumerate(scores)}
    return Diagnosis(named, (0.0, 1.0), num_val_examples, errors, False, Spending())


@pytest.mark.parametrize("repeatable", [True, False])
@pytest.mark.parametrize("num_calls", [4, 7, 40, 41])
@pytest.mark.parametrize("num_examples", [1, 3, 20, 500])
def test_rounds_add_up_to_the_calls_and_repeat_where_that_says_something(
    num_examples: int, num_calls: int, repeatable: bool
) -> None:
    sizes = rounds(num_examples, num_calls, repeatable)
    assert sum(sizes) == num_calls
    assert max(sizes) == sizes[0] <= num_examples
    assert len(sizes) > 1 or (repeatable and num_calls <= num_examples)


@pytest.mark.parametrize("num_calls", [4, 21, 40])
def test_diagnosis_makes_exactly_the_stated_calls_and_repeats_are_not_answered_from_the_cache(
    make: Any, num_calls: int
) -> None:
    counting = CountingMetric()
    lm = scripted_lm(cache=True, temperature=1.0)
    with dspy.context(lm=lm):
        student = dspy.Predict(Oracle.with_instructions(f"Answer question {num_calls}."))
        found = make(metric=counting).diagnose(student, trainset=examples(40), num_calls=num_calls)
    assert counting.calls == len(lm.engine.log) == found.spent.lm_calls == num_calls
    assert student.lm is None


def test_noise_is_measured_between_repeats_of_one_example(make: Any) -> None:
    turns = itertools.count()

    def wavering(system: str, user: str) -> str:
        return world()(system, user) if next(turns) < 20 else fields(answer="unknown")

    with dspy.context(lm=scripted_lm(world(program=wavering), temperature=0.7)):
        student = dspy.Predict(Oracle.with_instructions(SOLVED))
        found = make(num_threads=1).diagnose(student, trainset=examples(40), num_calls=40)
    assert set(found.scores.values()) == {(1.0, 0.0)}
    assert found.score == 0.5
    assert found.noise == pytest.approx(math.sqrt(0.5))
    assert found.headroom_of_failures == 0
    assert "more than half of the headroom is noise" in str(found)


def test_at_temperature_zero_examples_are_not_repeated_or_noise_is_told_to_be_none_by_construction(make: Any) -> None:
    with dspy.context(lm=scripted_lm(temperature=0.0)):
        once = make().diagnose(dspy.Predict(Oracle), trainset=examples(60), num_calls=40)
        again = make().diagnose(dspy.Predict(Oracle), trainset=examples(10), num_calls=40)
    assert len(once.scores) == 40
    assert "not measured: no example was run twice" in str(once)
    assert again.noise == 0
    assert "temperature 0: repeats are the same by construction" in str(again)


def test_program_without_headroom_is_told_to_be_so(make: Any) -> None:
    with dspy.context(lm=scripted_lm()):
        found = make().diagnose(dspy.Predict(Oracle.with_instructions(SOLVED)), trainset=examples(40))
    assert found.headroom == 0
    assert found.warnings == ("Optimising is unlikely to pay: every run reached the top of `score_range`.",)
    assert found.interval[0] < 0.9 < 1 == found.interval[1]


def test_program_that_always_fails_is_told_to_be_repaired_first(lm: dspy.LM, make: Any) -> None:
    class Broken(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.predict = dspy.Predict(Oracle)

        def forward(self, question: str) -> dspy.Prediction:
            raise KeyError("no such tool")

    (warning,) = make().diagnose(Broken(), trainset=examples(40)).warnings
    assert warning.startswith("Every run failed")
    assert "no such tool" in warning


@pytest.mark.parametrize(
    ("found", "warning"),
    [
        (diagnosis(*[(1.0, 1.0)] * 19, (0.0, 0.0), num_val_examples=20), "cannot tell a gain below"),
        (diagnosis(*[(0.0, 0.0)] * 20), "No run scored above the bottom"),
        (diagnosis(*[(1.0, 0.0)] * 10, (0.0, 0.0)), "more than half of the headroom is noise"),
        (
            diagnosis(*[(1.0, 0.0), (0.0, 0.0)] * 10, errors=("KeyError: x",)),
            "1 of 40 runs failed. The first: KeyError",
        ),
    ],
    ids=["too few examples", "all at the bottom", "noise", "some errors"],
)
def test_what_speaks_against_optimising_is_said(found: Diagnosis, warning: str) -> None:
    assert any(warning in each for each in found.warnings)
    assert warning in str(found)


def test_nothing_is_said_against_a_program_with_room_to_improve() -> None:
    assert diagnosis(*[(1.0, 1.0), (0.0, 0.0)] * 10).warnings == ()


@pytest.mark.parametrize("noise", [0.0, 0.2])
@pytest.mark.parametrize("num_examples", [40, 200])
def test_a_gain_of_the_detectable_size_is_found_four_times_in_five_and_half_of_it_is_not(
    noise: float, num_examples: int
) -> None:
    spread = noise / math.sqrt(2)
    found = diagnosis(*[(0.5 - spread, 0.5 + spread)] * 20)
    assert found.noise == pytest.approx(noise)
    rng = random.Random(0)

    def power(gain: float) -> float:
        detected = []
        for _ in range(500):
            # Lifts some examples by all that they lack, here 0.5.
            lifts = [0.5 * (rng.random() < gain / 0.5) for _ in range(num_examples)]
            differences = [lift + rng.gauss(0, noise) - rng.gauss(0, noise) for lift in lifts]
            detected.append(fmean(differences) > 1.96 * stdev(differences) / math.sqrt(num_examples))
        return fmean(detected)

    gain = found.detectable_gain(num_examples)
    assert power(gain) > 0.76
    assert power(gain / 2) < 0.7


def test_interval_of_the_score_covers_the_truth() -> None:
    rng, covered = random.Random(0), []
    for truth in [0.1, 0.5, 0.9] * 300:
        low, high = diagnosis(*[(float(rng.random() < truth),) for _ in range(20)]).interval
        covered.append(low <= truth <= high)
    assert fmean(covered) > 0.93


@pytest.mark.parametrize("num_calls", [3, 4.5, True])
def test_too_few_calls_are_refused(lm: dspy.LM, make: Any, num_calls: Any) -> None:
    with pytest.raises(ValueError, match="`num_calls` must be an integer of at least 4"):
        make().diagnose(dspy.Predict(Oracle), trainset=examples(40), num_calls=num_calls)
    assert lm.engine.log == []
