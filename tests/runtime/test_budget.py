from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.utils import DummyLM

from dspy_dlpo.core.records import Candidate, Spending
from dspy_dlpo.core.steps import Threshold
from dspy_dlpo.policies import Policy, State, StepContext
from dspy_dlpo.runtime import budget as budget_module
from dspy_dlpo.runtime.budget import Budget, BudgetSpent, Limits
from dspy_dlpo.runtime.metering import metered
from dspy_dlpo.runtime.prices import Prices
from tests.scripted import SECRETS, Oracle, examples, fields, metric, scripted_lm, world


class AcceptsEverything(Policy):
    """Lets every candidate pass, whatever it loses."""

    def threshold(self, candidate: Candidate, incumbent: Candidate, state: State, ctx: StepContext) -> Threshold:
        return Threshold(-1.0)


PRICES = {"scripted/model": (1.0, 2.0)}


def cost(lm: dspy.LM) -> list[float]:
    """What each call of a scripted model cost in dollars, at PRICES."""
    return [(len(system + user) + 2 * len(world()(system, user))) / 1e6 for system, user in lm.engine.log]


def tokens(lm: dspy.LM) -> list[float]:
    return [len(system + user) + len(world()(system, user)) for system, user in lm.engine.log]


def share_solved(instruction: str) -> float:
    return sum(f"When the topic is {topic}, answer" in instruction for topic in SECRETS) / len(SECRETS)


@pytest.mark.parametrize("num_threads", [1, 4])
@pytest.mark.parametrize(
    ("name", "limit", "amounts"),
    [
        ("max_lm_calls", 70, lambda lm: [1] * len(lm.engine.log)),
        ("max_tokens", 50_000, tokens),
        ("max_cost", 0.05, cost),
    ],
    ids=["LM calls", "tokens", "dollars"],
)
def test_a_limit_is_exceeded_by_no_more_than_what_is_in_flight(
    lm: dspy.LM, make: Any, name: str, limit: float, amounts: Any, num_threads: int
) -> None:
    optimizer = make(**{name: limit}, prices=PRICES, num_threads=num_threads)
    result = optimizer.compile(dspy.Predict(Oracle), trainset=examples(40), valset=examples(15, 100)).detailed_results
    spent = amounts(lm)
    assert result.stopped.startswith(f"{name}: ")
    assert sum(spent) - sum(sorted(spent)[-num_threads:]) < limit
    assert sum(spent) > limit * 0.7


def test_a_limit_in_seconds_ends_the_run_by_the_clock(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def slow(system: str, user: str) -> str:
        clock[0] += 1.0
        return world()(system, user)

    monkeypatch.setattr(budget_module.time, "monotonic", lambda: clock[0])
    with dspy.context(lm=scripted_lm(slow)):
        optimizer = make(max_seconds=60, num_threads=1)
        result = optimizer.compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results
    assert result.stopped.startswith("max_seconds: ")
    assert clock[0] <= 61


def test_the_best_so_far_is_returned_whenever_a_limit_ends_the_run(make: Any) -> None:
    for limit in (1, 5, 8, 15, 24, *range(30, 130, 9)):
        lm = scripted_lm()
        with dspy.context(lm=lm):
            optimizer = make(max_lm_calls=limit, num_threads=1)
            optimized = optimizer.compile(dspy.Predict(Oracle), trainset=examples(40), valset=examples(15, 100))
        result = optimized.detailed_results
        texts = {candidate.id: candidate.instructions["self"] for candidate in result.candidates}
        best = texts[result.history[-1].best] if result.history else "Answer the question."
        assert len(lm.engine.log) <= limit
        assert share_solved(optimized.signature.instructions) >= share_solved(best)


def test_student_comes_back_without_a_score_if_the_limit_allows_none(lm: dspy.LM, make: Any) -> None:
    optimized = make(max_lm_calls=3, num_threads=1).compile(dspy.Predict(Oracle), trainset=examples(40))
    assert optimized.signature.instructions == "Answer the question."
    assert optimized.detailed_results.num_val_examples == (0,)
    assert optimized.detailed_results.stopped == "max_lm_calls: 3 of 3 spent"


def test_what_the_final_choice_will_cost_is_kept_back_in_every_unit() -> None:
    budget = Budget(Limits(max_metric_calls=100, max_lm_calls=100, max_cost=1.0), num_threads=2)
    budget.charge(Spending(metric_calls=10, lm_calls=40, cost=0.1))
    budget.check()
    budget.reserve = 14
    budget.check(76)
    budget.reserve = 15
    with pytest.raises(BudgetSpent, match="max_lm_calls: 40 of 100 spent, the rest is kept for the final choice"):
        budget.check()
    budget.reserve = 0
    with pytest.raises(BudgetSpent, match="max_metric_calls: 10 of 100 spent"):
        budget.check(91)
    budget.charge(Spending(lm_calls=1, cost=0.95))
    with pytest.raises(BudgetSpent, match=r"max_cost: \$1.05 of \$1.00 spent$"):
        budget.check()


@pytest.mark.parametrize("policies", ["default", [AcceptsEverything()]], ids=["refused", "as good"])
def test_run_ends_when_nothing_was_better_for_so_many_steps(make: Any, policies: Any) -> None:
    with dspy.context(lm=scripted_lm(world(program=lambda system, user: fields(answer="never")))):
        optimizer = make(patience=3, policies=policies, batch_size=2)
        result = optimizer.compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results
    assert result.stopped == "nothing better in 3 steps"
    assert len(result.history) == 3


def test_limit_in_tokens_needs_a_model_that_reports_them(make: Any) -> None:
    lm = DummyLM([{"answer": "never"}] * 99)
    with dspy.context(lm=lm), pytest.raises(ValueError, match="`max_tokens` needs the tokens of every call"):
        make(max_tokens=10_000).compile(dspy.Predict(Oracle), trainset=examples(40))
    assert len(lm.history) <= 8


def test_limits_patience_and_prices_can_change_when_a_run_goes_on(make: Any, tmp_path: Path) -> None:
    logs = []
    for arguments in ({"max_lm_calls": 60}, {"num_steps": 4, "patience": 9, "prices": PRICES}):
        with dspy.context(lm=scripted_lm()):
            make(**arguments, log_dir=tmp_path).compile(dspy.Predict(Oracle), trainset=examples(40))
            logs.append(len(dspy.settings.lm.engine.log))
    with dspy.context(lm=scripted_lm()):
        make(num_steps=4).compile(dspy.Predict(Oracle), trainset=examples(40))
        assert logs[1] < len(dspy.settings.lm.engine.log)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_metric_calls": 0}, "`max_metric_calls` must be an integer of at least 1, but got max_metric_calls=0"),
        ({"max_lm_calls": 2.5}, "`max_lm_calls` must be an integer"),
        ({"max_tokens": True}, "`max_tokens` must be an integer"),
        ({"max_cost": -1}, "`max_cost` must be a positive number of dollars, but got max_cost=-1"),
        ({"max_cost": "1"}, "`max_cost` must be a positive number of dollars"),
        ({"max_seconds": float("nan")}, "`max_seconds` must be a positive number of seconds"),
        ({"patience": 0}, "`patience` must be an integer of at least 1"),
        ({"prices": {"m": 3}}, "`prices` must hold pairs of numbers .* 'm': 3"),
        ({"prices": {"m": (1, -1)}}, "`prices` must hold pairs of numbers"),
        ({"prices": [1]}, "`prices` must be a dict"),
        *(({"auto": "light", name: 5}, "`auto` sets the limits itself") for name in Limits.__dataclass_fields__),
    ],
)
def test_wrong_limit_is_refused_at_construction(make: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**arguments)


# Dollars.


def test_unknown_price_is_refused_before_the_first_call(lm: dspy.LM, make: Any) -> None:
    with pytest.raises(ValueError, match=r"`max_cost` needs a price for scripted/model.*prices=\{'scripted/model'"):
        make(max_cost=1.0).compile(dspy.Predict(Oracle), trainset=examples(40))
    assert lm.engine.log == []


def test_unknown_price_of_a_model_inside_the_metric_ends_the_run(lm: dspy.LM, make: Any) -> None:
    judge = dspy.LM("scripted/judge", engine=lm.engine, cache=False)

    def judged(example: Any, prediction: Any) -> dspy.Prediction:
        with dspy.context(lm=judge):
            dspy.Predict(Oracle)(question="0: What of topic alpha?")
        return metric(example, prediction)

    with pytest.raises(ValueError, match="that of scripted/judge is unknown"):
        make(max_cost=1.0, metric=judged, prices=PRICES).compile(dspy.Predict(Oracle), trainset=examples(40))


def test_without_a_limit_in_dollars_an_unknown_price_is_told_as_unknown(lm: dspy.LM, make: Any) -> None:
    assert make(num_steps=1).compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results.spent.cost is None


def test_reported_dollars_are_those_of_the_calls(lm: dspy.LM, make: Any) -> None:
    spent = make(prices=PRICES).compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results.spent
    assert spent.cost == pytest.approx(sum(cost(lm)))


def test_known_and_unknown_dollars_add_up_to_unknown() -> None:
    assert (Spending(cost=1.0) + Spending(cost=None)).cost is None
    assert (Spending(cost=1.0) + Spending()).cost == 1.0


def test_users_price_goes_before_the_lms_own_and_that_before_the_table() -> None:
    usage = {"prompt_tokens": 1_000_000, "completion_tokens": 1_000_000}
    prices = Prices({"mine": (1, 2)})
    assert prices.look_up(["mine", "openai/gpt-4o-mini", "local/some-model", "nobody/knows"]) == ["nobody/knows"]
    assert prices.cost("mine", usage, own=7.0) == 3.0
    assert prices.cost("openai/gpt-4o-mini", usage, own=7.0) == 7.0
    assert prices.cost("openai/gpt-4o-mini", usage) == pytest.approx(0.75)
    assert prices.cost("local/some-model", {}) == 0.0
    assert prices.cost("nobody/knows", usage) is None
    assert prices.cost("mine", {}) is None


@pytest.mark.filterwarnings("ignore")  # Those of litellm, which makes up the answers.
def test_lms_own_cost_is_read_call_by_call_also_across_threads() -> None:
    lm = dspy.LM("openai/gpt-4o-mini", engine="litellm", mock_response=fields(answer="11"), api_key="none", cache=False)
    predict = dspy.Predict(Oracle)
    with dspy.context(lm=lm), metered() as outer, metered() as meter:
        runs = [(predict, example.inputs()) for example in examples(6)]
        dspy.Parallel(num_threads=3, disable_progress_bar=True)(runs)
    own = [entry["cost"] for entry in lm.history]
    assert len(own) == 6
    assert min(own) > 0
    assert meter.spent.cost == outer.spent.cost == pytest.approx(sum(own))


def test_calls_that_a_program_tracks_itself_are_counted_too(lm: dspy.LM) -> None:
    with metered(Prices(PRICES)) as meter, dspy.track_usage():
        dspy.Predict(Oracle)(question="0: What of topic alpha?")
    assert meter.spent.lm_calls == 1
    assert meter.spent.cost == pytest.approx(sum(cost(lm)))


def test_answers_from_the_cache_cost_nothing() -> None:
    with dspy.context(lm=scripted_lm(cache=True)):
        for calls in (1, 0):
            with metered(Prices(PRICES)) as meter:
                dspy.Predict(Oracle)(question="cached: What of topic alpha?")
            assert meter.spent.lm_calls == calls
    assert meter.spent.cost == 0


def test_terminal_tells_what_is_spent_of_each_limit(lm: dspy.LM, make: Any, capsys: pytest.CaptureFixture[str]) -> None:
    optimizer = make(num_steps=1, max_cost=5.0, max_lm_calls=900, prices=PRICES, verbose=True)
    spent = optimizer.compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results.spent
    told = capsys.readouterr().err
    assert f"{spent.metric_calls} metric calls" in told
    assert " of 900 LM calls, $0." in told
    assert " of $5.00" in told


def test_prices_are_found_without_importing_litellm() -> None:
    code = """
import sys
from dspy_dlpo.runtime.prices import Prices
prices = Prices()
names = ["gpt-4o-mini", "openai/gpt-4o-mini", "anthropic/claude-haiku-4-5", "nobody/gpt-4o-mini", "openai/mine"]
missing = prices.look_up(names)
print(prices.of("openai/gpt-4o-mini"), prices.of("gpt-4o-mini"), missing, "litellm" in sys.modules)
"""
    found = subprocess.check_output([sys.executable, "-c", code], text=True)
    price, same, missing = "(0.15, 0.6)", "(0.15, 0.6)", ["nobody/gpt-4o-mini", "openai/mine"]
    assert found.strip() == f"{price} {same} {missing} False"
