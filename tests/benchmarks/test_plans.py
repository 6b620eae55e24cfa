from __future__ import annotations

from collections.abc import Callable

import pytest

from dspy_dlpo.benchmarks.rivals import plans
from dspy_dlpo.benchmarks.rivals.plans import BudgetTooSmall, Plan

PLANS: dict[str, Callable[[int], Plan]] = {
    "copro": lambda budget: plans.copro(budget, 1, 150),
    "copro, two predictors": lambda budget: plans.copro(budget, 2, 150),
    "simba": lambda budget: plans.simba(budget, 150),
    "mipro": lambda budget: plans.mipro(budget, 1, 50, demos=True),
    "mipro0": lambda budget: plans.mipro(budget, 1, 50, demos=False),
    "mipro0, large valset": lambda budget: plans.mipro(budget, 1, 200, demos=False),
    "textgrad": lambda budget: plans.textgrad(budget, 50),
    "apo": lambda budget: plans.apo(budget, 50),
}


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("budget", [100, 300, 1000])
def test_a_plan_fits_in_the_budget_and_uses_at_least_90_percent_of_it(name: str, budget: int) -> None:
    assert 0.9 * budget <= PLANS[name](budget).metric_calls <= budget


@pytest.mark.parametrize("name", PLANS)
def test_a_budget_too_small_is_refused_and_the_least_that_is_named_suffices(name: str) -> None:
    with pytest.raises(BudgetTooSmall, match=r"must be at least \d+ for") as refusal:
        PLANS[name](5)
    least = int(str(refusal.value).split("at least ")[1].split()[0])
    assert PLANS[name](least).metric_calls <= least
    with pytest.raises(BudgetTooSmall):
        PLANS[name](least - 1)


def test_the_defaults_of_an_optimiser_are_kept_where_the_budget_is_theirs() -> None:
    assert plans.copro(10 * 3 * 50, 1, 150) == Plan({"breadth": 10, "depth": 3}, 50, 1500)
    simba = plans.simba(8 * 32 * (6 + 7) + 7 * 150, 150)
    assert simba == Plan({"bsize": 32, "num_candidates": 6, "max_steps": 8}, 150, 4378)


def test_a_program_of_several_predictors_costs_copro_all_earlier_prompts_again() -> None:
    plan = plans.copro(2 * 10 * 6 * 50, 2, 150)
    assert plan.settings == {"breadth": 10, "depth": 3}
    assert plan.metric_calls == 6000


@pytest.mark.parametrize(
    ("left", "num_examples", "trials"),
    [(300, 50, 5), (99, 50, 0), (100 + 35 + 100, 100, 1), (100 + 5 * 35 + 100, 100, 5), (100 + 6 * 35 + 200, 100, 6)],
    ids=["full evaluations", "none fits", "one minibatch", "five share a full evaluation", "the sixth needs another"],
)
def test_mipro_trials_are_those_that_fit(left: int, num_examples: int, trials: int) -> None:
    assert plans.mipro_trials(left, num_examples) == trials


def test_optimisers_that_choose_on_the_valset_get_a_twentieth_of_the_budget_of_it_and_at_least_10() -> None:
    assert [plans.valset_share(budget, 50) for budget in (20, 300, 2000)] == [10, 15, 50]


def test_simba_never_gets_fewer_examples_than_its_minibatch_has() -> None:
    for budget in range(50, 2000, 50):
        plan = plans.simba(budget, 60)
        assert plan.num_examples >= plan.settings["bsize"]
