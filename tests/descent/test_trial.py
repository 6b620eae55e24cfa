from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import pytest

from dspy_dlpo.core.records import Candidate
from dspy_dlpo.core.steps import Threshold, Trial
from dspy_dlpo.descent.statistics import looks, verdict
from dspy_dlpo.descent.trial import Race, decide
from tests.descent.scores import KnownScores, names, settings


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


INCUMBENT, FIRST, SECOND = (Candidate({"self": text}) for text in ("Incumbent.", "First.", "Second."))
TRAINSET = names(20)


def race(
    incumbent: str,
    first: str,
    second: str,
    thresholds: Sequence[Threshold] = (Threshold(), Threshold()),
    **given: float,
) -> tuple[tuple[float, ...], Trial, KnownScores]:
    scores = KnownScores({INCUMBENT: incumbent, FIRST: first, SECOND: second}, TRAINSET)
    gains, trial = Race(scores, settings(max_trial_examples=20, **given))(
        INCUMBENT, zip([FIRST, SECOND], thresholds, strict=True), lambda: TRAINSET
    )
    assert trial is not None
    return gains, trial, scores


def test_race_pays_the_first_examples_and_only_the_winner_goes_on() -> None:
    gains, trial, scores = race("0" * 20, "0" * 20, "1000" + "0" * 15 + "1")
    assert gains == (0, 0.25)
    assert trial.candidate == SECOND.id
    assert (scores.num_paid(FIRST), scores.num_paid(SECOND)) == (4, 20)
    assert trial.examples == tuple(TRAINSET)
    assert (trial.population, trial.accepted) == (20, True)


def test_race_ends_with_the_first_candidate_that_is_ahead_and_asks_for_no_other() -> None:
    scores = KnownScores({INCUMBENT: "0" * 20, FIRST: "1" * 20, SECOND: "1" * 20}, TRAINSET)
    entrants = iter([(FIRST, Threshold()), (SECOND, Threshold())])
    gains, trial = Race(scores, settings(max_trial_examples=20))(INCUMBENT, entrants, lambda: TRAINSET)
    assert trial is not None
    assert (gains, trial.candidate, trial.accepted) == ((1,), FIRST.id, True)
    assert scores.num_paid(SECOND) == 0
    assert next(entrants) == (SECOND, Threshold())


def test_candidate_that_must_help_is_not_behind_one_that_gains_less_for_its_higher_bar() -> None:
    lenient, strict = Threshold(-0.5), Threshold(-0.5) + Threshold(0.0, {"must help": True}, 1e-9)
    population = ("0" * 20, "1000" * 5, "1100" * 5)
    _, trial, _ = race(*population, thresholds=(lenient, strict), confidence=0.99)
    assert trial.candidate == FIRST.id  # It is ahead, so the other does not run.
    scores = KnownScores(dict(zip((INCUMBENT, FIRST, SECOND), population, strict=True)), TRAINSET)
    run = Race(scores, settings(max_trial_examples=20), frozenset({FIRST.source}))
    _, winner = run(INCUMBENT, [(FIRST, lenient), (SECOND, strict)], lambda: TRAINSET)
    assert winner is not None
    assert winner.candidate == SECOND.id


def test_candidate_of_a_source_that_asks_no_model_does_not_end_the_race() -> None:
    free = replace(FIRST, source="Free")
    scores = KnownScores({INCUMBENT: "0" * 20, free: "1100" * 5, SECOND: "1110" * 5}, TRAINSET)
    entrants = [(free, Threshold()), (SECOND, Threshold())]
    race = Race(scores, settings(max_trial_examples=20), frozenset({"Free"}))
    gains, trial = race(INCUMBENT, entrants, lambda: TRAINSET)
    assert trial is not None
    assert (gains, trial.candidate) == ((0.5, 0.75), SECOND.id)


def test_of_two_that_gain_the_same_the_one_a_model_wrote_wins() -> None:
    free = replace(FIRST, source="Free")
    scores = KnownScores({INCUMBENT: "0" * 20, free: "1100" * 5, SECOND: "0110" * 5}, TRAINSET)
    race = Race(scores, settings(max_trial_examples=20), frozenset({"Free"}))
    _, trial = race(INCUMBENT, [(free, Threshold()), (SECOND, Threshold())], lambda: TRAINSET)
    assert trial is not None
    assert trial.candidate == SECOND.id


def test_race_without_a_candidate_has_no_trial() -> None:
    scores = KnownScores({INCUMBENT: "0" * 20}, TRAINSET)
    assert Race(scores, settings())(INCUMBENT, [], lambda: TRAINSET) == ((), None)


@pytest.mark.parametrize("level", [-0.5, 0.5], ids=["let pass a loss", "must gain much"])
def test_candidate_not_ahead_of_the_incumbent_and_of_its_threshold_does_not_end_the_race(level: float) -> None:
    first = {-0.5: "0" * 20, 0.5: "11" + "0" * 18}[
        level
    ]  # No gain where a loss passes; 0.5 where more than 0.5 must be.
    gains, trial, _ = race("0" * 20, first, "1" * 20, [Threshold(level), Threshold(level)])
    assert len(gains) == 2
    assert trial.candidate == SECOND.id


def test_winner_is_the_one_furthest_above_its_own_threshold() -> None:
    thresholds = Threshold(0.75), Threshold(0.0)
    _, trial, _ = race("0" * 20, "1110" + "0" * 16, "1100" + "0" * 16, thresholds)
    assert (trial.candidate, trial.threshold) == (SECOND.id, thresholds[1])


def test_floor_of_a_threshold_decides_where_the_sum_of_the_policies_is_below_it() -> None:
    allows, forbids = Threshold(-0.9), Threshold(-0.9, {}, floor=0.1)
    assert race("1000" * 5, "0" * 20, "0" * 20, [allows, allows])[1].accepted
    assert not race("1000" * 5, "0" * 20, "0" * 20, [forbids, forbids])[1].accepted


def test_winner_among_several_needs_more_evidence_than_a_single_candidate() -> None:
    digits = "01010011101110111110"
    trial = Race(
        KnownScores({INCUMBENT: "0" * 20, FIRST: "0" * 20, SECOND: digits}, TRAINSET), settings(max_trial_examples=20)
    )
    limit = Threshold(0.25)
    _, alone = trial(INCUMBENT, [(SECOND, limit)], lambda: TRAINSET)
    _, picked = trial(INCUMBENT, [(FIRST, limit), (SECOND, limit)], lambda: TRAINSET)
    assert alone and picked
    assert alone.accepted and picked.accepted
    assert len(alone.differences) < len(picked.differences) < 20


def test_candidate_whose_every_pair_is_lost_neither_wins_nor_is_accepted() -> None:
    gains, trial, _ = race("0" * 20, "-" * 20, "1" * 20)
    assert (gains, trial.candidate) == ((0, 1), SECOND.id)
    gains, trial, _ = race("-" * 20, "1" * 20, "1" * 20, [Threshold(-1), Threshold(-1)])
    assert (gains, trial.differences, trial.examples, trial.accepted) == ((0, 0), (), (), False)


def test_trial_names_the_examples_of_its_differences_without_those_that_were_lost() -> None:
    _, trial, _ = race("-000" * 5, "0-11" * 5, "0" * 20)
    kept = [name for index, name in enumerate(TRAINSET) if index % 4 > 1]
    assert trial.examples == tuple(kept[: len(trial.differences)])
    assert trial.differences == (1.0,) * len(trial.examples)


def test_trial_names_no_example_that_was_scored_before_but_not_needed_for_the_decision() -> None:
    scores = KnownScores({INCUMBENT: "0" * 20, FIRST: "1" * 20}, TRAINSET)
    for candidate in (INCUMBENT, FIRST):
        scores.pay_for_scores(candidate, TRAINSET)
    _, trial = Race(scores, settings(max_trial_examples=20))(INCUMBENT, [(FIRST, Threshold())], lambda: TRAINSET)
    assert trial is not None
    assert trial.examples == tuple(TRAINSET[: len(trial.differences)])
    assert len(trial.examples) < 20
    assert trial.population == 20


def test_first_look_is_after_as_many_examples_as_a_minibatch_has() -> None:
    for batch_size in (4, 10):
        _, trial, scores = race("0" * 20, "1" * 20, "0" * 20, batch_size=batch_size)
        assert len(trial.differences) >= batch_size
        assert scores.num_paid(FIRST) == len(trial.differences)
