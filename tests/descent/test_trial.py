from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import fmean

import pytest

from dspy_dlpo.descent.statistics import looks, verdict
from dspy_dlpo.descent.trial import decide


def paired(
    population: Sequence[float | None], threshold: float = 0.0, confidence: float = 0.95
) -> tuple[list[float], bool]:
    """Decide on a population in which None is a pair that is lost."""

    def differences(names: Sequence[str]) -> list[float]:
        found = [population[int(name)] for name in names]
        return [each for each in found if each is not None]

    names = [str(index) for index in range(len(population))]
    return decide(differences, names, threshold=threshold, width=1.0, confidence=confidence, first_look=8)


@pytest.mark.parametrize(
    ("population", "first", "expected"),
    [
        (190, 8, [8, 19, 36, 57, 83, 114, 149, 190]),
        (50, 5, [5, 10, 17, 26, 37, 50]),
        (9, 8, [8, 9]),
        (8, 8, [8]),
        (5, 8, [5]),
        (3, 0, [1, 2, 3]),
        (0, 8, []),
    ],
)
def test_looks_go_in_growing_steps_up_to_the_whole_population(population: int, first: int, expected: list[int]) -> None:
    assert looks(population, first) == expected


def test_looks_begin_with_the_first_grow_and_end_with_the_population() -> None:
    for population in range(1, 200):
        for first in range(1, population + 2):
            sizes = looks(population, first)
            assert sizes[0] == min(first, population)
            assert sizes[-1] == population
            assert sizes == sorted(set(sizes))


def test_decision_is_exact_when_every_example_was_paid() -> None:
    assert verdict([1.0] + [0.0] * 9, 10, 0.05, 1.0, 0.95) is True
    assert verdict([1.0] + [0.0] * 9, 10, 0.1, 1.0, 0.95) is False


def test_clear_gain_is_accepted_and_clear_loss_refused_after_the_first_look() -> None:
    assert paired([1.0] * 190) == ([1.0] * 8, True)
    assert paired([-1.0] * 190) == ([-1.0] * 8, False)


def test_few_equal_differences_do_not_look_certain() -> None:
    paid, accepted = paired([0.0] * 20)
    assert len(paid) == 20
    assert not accepted


def test_threshold_below_zero_accepts_a_small_loss() -> None:
    population = [-1.0] + [0.0] * 63
    assert paired(population, threshold=-0.2)[1]
    assert not paired(population, threshold=0.0)[1]


def test_score_range_of_any_width_gives_the_same_decisions() -> None:
    differences = [1.0, 0.0, 1.0, 1.0, 0.0, -1.0, 1.0, 1.0]
    for threshold in (-0.5, -0.2, 0.0, 0.2):
        tens = verdict([10 * each for each in differences], 50, 10 * threshold, 10.0, 0.95)
        assert tens == verdict(differences, 50, threshold, 1.0, 0.95)


def test_more_confidence_pays_for_more_examples() -> None:
    rng = random.Random(0)
    population = rng.choices([-1.0, 0.0, 1.0], weights=[0.1, 0.6, 0.3], k=190)
    paid = [len(paired(population, confidence=confidence)[0]) for confidence in (0.8, 0.95, 0.999)]
    assert paid == sorted(set(paid))


@pytest.mark.parametrize("values", [(1.0,), (0.2, 0.4, 0.6, 0.8, 1.0)], ids=["right or wrong", "steps of 0.2"])
@pytest.mark.parametrize("size", [12, 50, 190])
@pytest.mark.parametrize("surplus", [-0.2, 0.0, 0.2])
def test_decisions_agree_with_the_whole_population_at_the_chosen_confidence(
    values: tuple[float, ...], size: int, surplus: float
) -> None:
    rng = random.Random(0)
    wrong = paid = 0
    for _ in range(300):
        signs = rng.choices([-1.0, 0.0, 1.0], weights=[0.2 - surplus / 2, 0.6, 0.2 + surplus / 2], k=size)
        population = [sign * rng.choice(values) for sign in signs]
        differences, accepted = paired(population)
        wrong += accepted != (fmean(population) > 0)
        paid += len(differences)
    assert wrong / 300 <= 0.05
    assert paid < 300 * size


def test_lost_pairs_make_the_population_smaller() -> None:
    assert paired([None, 1.0, None, -1.0, 1.0]) == ([1.0, -1.0, 1.0], True)
    assert paired([None] * 40 + [0.0] * 9 + [1.0]) == ([0.0] * 9 + [1.0], True)


def test_decision_after_losses_is_that_of_the_pairs_that_are_left() -> None:
    rng = random.Random(0)
    wrong = 0
    for _ in range(300):
        population = rng.choices([-1.0, 0.0, 1.0, None], weights=[0.15, 0.5, 0.15, 0.2], k=50)
        left = [each for each in population if each is not None]
        wrong += paired(population)[1] != (fmean(left) > 0)
    assert wrong / 300 <= 0.05


def test_nothing_is_accepted_when_every_pair_is_lost() -> None:
    assert paired([None] * 50, threshold=-0.5) == ([], False)
    assert paired([], threshold=-0.5) == ([], False)
