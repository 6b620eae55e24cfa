from __future__ import annotations

import random
from statistics import fmean

import pytest

from dspy_dlpo.acceptance import decide, looks, verdict


def paired(population: list[float], threshold: float = 0.0, confidence: float = 0.95) -> tuple[list[float], bool]:
    names = [str(index) for index in range(len(population))]
    return decide(
        lambda chunk: [population[int(name)] for name in chunk],
        names,
        threshold=threshold,
        width=1.0,
        confidence=confidence,
        first_look=8,
    )


def test_looks_double_up_to_the_whole_population() -> None:
    assert looks(50, 8) == [8, 16, 32, 50]
    assert looks(8, 8) == [8]
    assert looks(5, 8) == [5]
    assert looks(0, 8) == []


def test_decision_is_exact_when_every_example_was_paid() -> None:
    assert verdict([1.0] + [0.0] * 9, 10, 0.05, 1.0, 0.95, 1) is True
    assert verdict([1.0] + [0.0] * 9, 10, 0.1, 1.0, 0.95, 1) is False


def test_clear_gain_is_accepted_and_clear_loss_refused_after_the_first_look() -> None:
    assert paired([1.0] * 100) == ([1.0] * 8, True)
    assert paired([-1.0] * 100) == ([-1.0] * 8, False)


def test_few_equal_differences_do_not_look_certain() -> None:
    paid, accepted = paired([0.0] * 20)
    assert len(paid) == 20
    assert not accepted


def test_threshold_below_zero_accepts_a_small_loss() -> None:
    population = [-1.0] + [0.0] * 63
    assert paired(population, threshold=-0.2)[1]
    assert not paired(population, threshold=0.0)[1]


@pytest.mark.parametrize("gain", [-0.2, 0.0, 0.2])
def test_decisions_agree_with_the_whole_population_at_the_chosen_confidence(gain: float) -> None:
    rng = random.Random(0)
    wrong = paid = 0
    for _ in range(400):
        population = rng.choices([-1.0, 0.0, 1.0], weights=[0.2 - gain / 2, 0.6, 0.2 + gain / 2], k=100)
        differences, accepted = paired(population)
        wrong += accepted != (fmean(population) > 0)
        paid += len(differences)
    assert wrong / 400 <= 0.05
    assert paid / 400 < 100
