from __future__ import annotations

from itertools import islice

import pytest

from dspy_dlpo.descent.sampling import Sampler
from tests.descent.scores import names, settings

TRAINSET = names(20)


def never(name: str) -> bool:
    return False


def drawn(sampler: Sampler, number: int) -> list[str]:
    """Return the examples of minibatches that nobody passes, one behind the other."""
    found: list[str] = []
    while len(found) < number:
        found += sampler.minibatch(len(found), never)
    return found[:number]


def test_minibatches_go_through_the_whole_trainset_once_an_epoch_each_time_in_another_order() -> None:
    first, second, third = (drawn(Sampler(settings()), 60)[start : start + 20] for start in (0, 20, 40))
    assert sorted(first) == sorted(second) == sorted(third) == sorted(TRAINSET)
    assert first != second != third != first
    assert first != TRAINSET


def test_order_follows_from_the_seed() -> None:
    orders = [drawn(Sampler(settings(seed=seed)), 40) for seed in (0, 0, 1)]
    assert orders[0] == orders[1]
    assert orders[0][:20] != orders[2][:20]
    assert orders[0][20:] != orders[2][20:]


def test_minibatch_goes_on_until_it_holds_a_batch_of_examples_not_known_to_be_passed() -> None:
    sampler = Sampler(settings())
    order = drawn(sampler, 20)
    passed = {*order[:3], order[4]}
    assert sampler.minibatch(0, passed.__contains__) == order[:8]
    assert sampler.minibatch(2, passed.__contains__) == order[2:8]


def test_minibatch_of_passed_examples_leaves_a_batch_for_the_trial() -> None:
    sampler = Sampler(settings())
    assert sampler.minibatch(0, lambda name: True) == drawn(sampler, 16)
    small = Sampler(settings(trainset=names(6)))
    assert len(small.minibatch(0, lambda name: True)) == 4  # A whole batch, whatever is left.


def test_minibatch_over_the_end_of_an_epoch_has_no_example_twice() -> None:
    sampler = Sampler(settings(trainset=names(7), batch_size=5))
    for position in range(40):
        minibatch = sampler.minibatch(position, never)
        assert len(minibatch) == len({*minibatch}) == 5


def test_trial_begins_where_the_next_minibatch_will_so_that_what_it_pays_serves_twice() -> None:
    sampler = Sampler(settings())
    minibatch = sampler.minibatch(0, never)
    assert sampler.trial(4, minibatch, []) == sampler.minibatch(4, never) == drawn(sampler, 8)[4:]


@pytest.mark.parametrize("position", range(0, 40, 3))
@pytest.mark.parametrize("most", [4, 8, None])
def test_trial_has_fresh_examples_only_and_none_twice(position: int, most: int | None) -> None:
    sampler = Sampler(settings(max_trial_examples=most))
    minibatch = sampler.minibatch(position, never)
    trial = sampler.trial(position + len(minibatch), minibatch, [])
    assert not {*trial} & {*minibatch}
    assert len(trial) == len({*trial}) == (most or 16)


def test_trial_of_a_small_trainset_falls_back_on_the_minibatch_behind_the_fresh_ones() -> None:
    sampler = Sampler(settings(trainset=names(6), max_trial_examples=5))
    minibatch = sampler.minibatch(0, never)
    trial = sampler.trial(4, minibatch, [])
    assert trial == [*drawn(sampler, 6)[4:], *minibatch][:5]


def test_trial_with_enough_fresh_examples_for_a_first_look_uses_no_other() -> None:
    sampler = Sampler(settings(trainset=names(8), max_trial_examples=8))
    minibatch = sampler.minibatch(0, never)
    assert sorted(sampler.trial(4, minibatch, [])) == sorted({*names(8)} - {*minibatch})


def test_examples_that_a_sentence_was_written_for_come_first_even_from_the_minibatch() -> None:
    sampler = Sampler(settings())
    minibatch = sampler.minibatch(0, never)
    order = drawn(sampler, 20)
    assert sampler.trial(4, minibatch, [order[9], order[1]]) == [order[9], order[1], order[4], order[5]]
    assert sampler.trial(4, minibatch, [order[5]]) == [order[5], order[4], order[6], order[7]]


def test_fresh_examples_come_in_the_order_of_the_epoch() -> None:
    sampler = Sampler(settings())
    order = drawn(sampler, 40)
    assert sampler.fresh(3, [order[4]], 3) == [order[3], *order[5:7]]
    assert sampler.fresh(20, [], None) == order[20:]
    later = list(islice((name for name in order[20:] if name not in order[15:20]), 15))
    assert sampler.fresh(15, [], None) == [*order[15:20], *later]
