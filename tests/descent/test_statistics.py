from __future__ import annotations

import math
import random
from collections.abc import Sequence
from fractions import Fraction
from itertools import product
from operator import mul
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_dlpo.descent.statistics import Gain, mean_interval, paired_interval


@pytest.mark.parametrize(
    ("successes", "size", "expected"),
    [(0, 10, (0.0, 0.3085)), (3, 10, (0.0667, 0.6525)), (25, 50, (0.3553, 0.6447)), (1, 1, (0.025, 1.0))],
)
def test_interval_of_a_share_is_that_of_clopper_and_pearson(
    successes: int, size: int, expected: tuple[float, float]
) -> None:
    values = [1.0] * successes + [0.0] * (size - successes)
    assert mean_interval(values, 0.0, 1.0) == pytest.approx(expected, abs=0.003)


def test_bound_is_the_quantile_of_the_mean_under_random_weights() -> None:
    values = [-0.5, -0.1, 0.0, 0.2, 0.2, 0.6, 0.9]
    rng = random.Random(0)
    means = []
    for _ in range(20_000):
        weights = [rng.expovariate(1) for _ in range(8)]
        means.append(sum(map(mul, [-1.0, *values], weights)) / sum(weights))
    assert mean_interval(values, -1.0, 1.0)[0] == pytest.approx(sorted(means)[500], abs=0.01)


def test_no_population_of_wins_ties_and_losses_is_missed_more_often_than_allowed() -> None:
    size, level = 8, Fraction(1, 40)
    bounds = {
        (wins, losses): mean_interval([1.0] * wins + [-1.0] * losses + [0.0] * (size - wins - losses), -1.0, 1.0)[0]
        for wins, losses in product(range(size + 1), repeat=2)
        if wins + losses <= size
    }
    for win, loss in ((win, loss) for win, loss in product(range(21), repeat=2) if win + loss <= 20):
        missed = sum(
            math.comb(size, wins)
            * math.comb(size - wins, losses)
            * Fraction(win, 20) ** wins
            * Fraction(loss, 20) ** losses
            * Fraction(20 - win - loss, 20) ** (size - wins - losses)
            for (wins, losses), bound in bounds.items()
            if bound > (win - loss) / 20
        )
        assert missed <= level


@given(st.lists(st.floats(-2, 3), min_size=1, max_size=30), st.floats(0.51, 0.999999))
def test_interval_lies_in_the_range_holds_the_mean_and_is_never_a_point(values: list[float], confidence: float) -> None:
    low, high = mean_interval(values, -2.0, 3.0, confidence)
    assert -2.0 <= low <= fmean(values) + 1e-6
    assert fmean(values) - 1e-6 <= high <= 3.0
    assert high - low > 1e-3


def test_interval_turns_with_the_order_of_the_programs_and_scales_with_the_score_range() -> None:
    before, after = [0.0, 0.2, 0.4, 1.0, 0.5], [0.4, 0.2, 1.0, 0.8, 0.9]
    low, high = paired_interval(before, after)
    assert paired_interval(after, before) == pytest.approx((-high, -low))
    hundredfold = paired_interval(
        [100 * score for score in before], [100 * score for score in after], score_range=(0, 100)
    )
    assert hundredfold == pytest.approx((100 * low, 100 * high))


def test_interval_is_wider_the_more_candidates_there_were_and_the_surer_it_must_be() -> None:
    before, after = [0.0] * 20, [1.0] * 8 + [0.0] * 12

    def width(confidence: float = 0.95, num_candidates: int = 1) -> float:
        low, high = paired_interval(before, after, confidence, num_candidates=num_candidates)
        return high - low

    assert width() < width(num_candidates=3) < width(num_candidates=30)
    assert width(0.8) < width() < width(0.99)
    assert width(num_candidates=5) == pytest.approx(width(0.99))


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ([], [], "must pair up, but have 0 and 0"),
        ([0.0], [0.0, 1.0], "must pair up, but have 1 and 2"),
        ([0.0], [37.0], r"Scores must be in score_range=\(0.0, 1.0\)"),
        ([0.0], [math.nan], "Scores must be in score_range"),
    ],
)
def test_scores_that_do_not_pair_up_or_are_out_of_range_are_refused(
    before: Sequence[float], after: Sequence[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        paired_interval(before, after)


def test_confidence_in_percent_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`confidence` must be in \(0.5, 1\), but got confidence=95"):
        mean_interval([0.5], 0.0, 1.0, 95)


def test_gain_says_how_much_how_sure_and_on_what() -> None:
    gain = Gain.between([0.0] * 20, [1.0] * 12 + [0.0] * 8, score_range=(0.0, 1.0), num_candidates=3)
    assert gain.is_sure
    assert gain.mean == pytest.approx(0.6)
    assert str(gain).startswith("+0.600 (95 % interval +0.")
    assert str(gain).endswith(", 20 examples)")


def test_gain_is_not_sure_if_it_may_be_zero_or_is_a_loss() -> None:
    assert not Gain.between([0.0] * 20, [1.0] + [0.0] * 19, score_range=(0.0, 1.0)).is_sure
    assert not Gain.between([1.0] * 20, [0.0] * 20, score_range=(0.0, 1.0)).is_sure
    assert not Gain().is_sure


def test_gain_at_an_early_stop_allows_for_every_number_of_examples_where_it_could_have_stopped() -> None:
    scores = [0.0] * 8, [1.0] * 6 + [0.0] * 2
    stopped = Gain.between(*scores, score_range=(0.0, 1.0), num_candidates=2, num_looks=3)
    assert (stopped.low, stopped.high) == paired_interval(*scores, num_candidates=6)
    assert stopped.num_candidates == 2
