from __future__ import annotations

import pickle
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_dlpo.benchmarks.cells import Cell, add_cell, read_cells
from dspy_dlpo.benchmarks.compare import run_cell
from dspy_dlpo.benchmarks.job import CountedMetric, Job
from dspy_dlpo.benchmarks.rivals import plans
from dspy_dlpo.benchmarks.rivals import registry as rivals
from dspy_dlpo.benchmarks.rivals.registry import OPTIMIZERS, STRATEGIES, ablation, gepa, mipro, rival_named
from dspy_dlpo.descent.screening import LEFT_OUT, RULES, TOGETHER, TOO_MANY
from dspy_dlpo.descent.sources import SOURCES
from dspy_dlpo.policies import PRESETS
from tests.small_task import INSTRUCTION, examples, meaning, metric, setup

SEARCHING = [name for name in OPTIMIZERS if name not in ("human", "none")]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Of the rivals' own code.


@pytest.mark.parametrize("name", SEARCHING)
def test_an_optimiser_keeps_to_its_budget_and_uses_most_of_it(name: str) -> None:
    cell = run_cell(Cell("codes", name, 160, 0), setup, rival_named(name))
    assert not cell.failed
    overshoot = 0 if name != "gepa" else 2 * 3 + 20  # It stops after the iteration that reaches the budget.
    assert cell.metric_calls <= 160 + overshoot
    stops_early = name in ("dlpo", "dlpo+demos", "apo")  # When nothing is left to gain.
    assert cell.metric_calls >= (40 if stops_early else 130)


@pytest.mark.parametrize("name", [name for name in SEARCHING if name not in ("copro", "simba", "mipro", "mipro0")])
def test_an_optimiser_that_reads_feedback_learns_what_it_says(name: str) -> None:
    cell = run_cell(Cell("codes", name, 160, 0), setup, rival_named(name))
    assert cell.score is not None
    assert cell.score >= 0.5
    assert "means w" in cell.instructions["self"]


@pytest.mark.parametrize("name", SEARCHING)
def test_the_same_seed_gives_the_same_run(name: str) -> None:
    one, two = (run_cell(Cell("codes", name, 120, 3), setup, rival_named(name)) for _ in range(2))
    assert replace(one, seconds=0.0) == replace(two, seconds=0.0)


@pytest.mark.parametrize("name", SEARCHING)
def test_the_curve_starts_with_the_student_and_ends_with_the_result(name: str) -> None:
    cell = run_cell(Cell("codes", name, 160, 0), setup, rival_named(name))
    calls = [number for number, _ in cell.curve]
    assert cell.curve[0] == (0, 0.0)
    assert cell.curve[-1] == (cell.metric_calls, cell.score)
    assert calls == sorted(calls)


def test_gepa_counts_the_same_metric_calls_as_we_do(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    compile_ = dspy.GEPA.compile

    def spy(*args: object, **options: object) -> dspy.Module:
        program = compile_(*args, **options)
        told.append(program.detailed_results.total_metric_calls)
        return program

    monkeypatch.setattr(dspy.GEPA, "compile", spy)
    cell = run_cell(Cell("codes", "gepa", 160, 0), setup, gepa)
    assert told == [cell.metric_calls]


def test_mipro_evaluates_on_minibatches_within_the_budget_where_the_valset_is_large() -> None:
    setting = setup()
    setting = replace(setting, task=replace(setting.task, valset=examples(60, 100)))
    cell = run_cell(Cell("codes", "mipro0", 400, 0), lambda seed: setting, rival_named("mipro0"))
    assert cell.plan["num_examples"] > 50
    assert 350 <= cell.metric_calls <= 400


def test_bootstrapping_takes_at_most_half_of_the_budget_even_if_every_answer_is_wrong() -> None:
    setting = setup()
    counted = CountedMetric(lambda example, prediction, trace=None: dspy.Prediction(score=0.0, feedback=""))
    job = Job(setting.task, counted, setting.lm, setting.lm, 120, 0, 1)
    with dspy.context(lm=setting.lm):
        mipro(job)
    assert counted.calls <= 120


def test_a_failing_answer_is_no_demo_though_its_score_comes_with_feedback() -> None:
    cell = run_cell(Cell("codes", "mipro", 160, 0), setup, rival_named("mipro"))
    counted = CountedMetric(metric)
    assert counted.number(examples(1, 0)[0], dspy.Prediction(answer="unknown")) == 0.0
    assert -1 not in cell.demos["self"]


def test_ours_with_demos_tunes_both_within_the_budget() -> None:
    cell = run_cell(Cell("codes", "dlpo+demos", 200, 0), setup, rival_named("dlpo+demos"))
    assert "means w" in cell.instructions["self"]
    assert len(cell.demos["self"]) <= 4
    assert cell.metric_calls <= 200


@pytest.mark.parametrize("name", ["dlpo", "dlpo+demos", "gepa", "copro", "mipro", "mipro0", "simba", "textgrad", "apo"])
def test_a_budget_too_small_skips_the_cell_with_a_reason(name: str) -> None:
    cell = run_cell(Cell("codes", name, 12, 0), setup, rival_named(name))
    assert "must be at least" in cell.skipped
    assert cell.score is None


def test_textgrad_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "textgrad", None)
    with pytest.raises(ImportError, match=r"pip install 'dspy-dlpo\[textgrad\]'"):
        run_cell(Cell("codes", "textgrad", 160, 0), setup, rival_named("textgrad"))


def test_the_human_prompt_and_no_optimisation_cost_nothing() -> None:
    human, none = (run_cell(Cell("codes", name, 160, 0), setup, rival_named(name)) for name in ("human", "none"))
    assert (human.score, none.score) == (1.0, 0.0)
    assert human.lm_calls == none.lm_calls == human.metric_calls == none.metric_calls == 0
    assert meaning(3) in human.instructions["self"]
    assert none.instructions == {"self": INSTRUCTION}


def test_the_ablation_has_every_strategy_alone_and_all_but_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals, "dlpo", lambda job, policies: [type(policy) for policy in policies])
    job: Any = None
    alone = [rival_named(name)(job) for name in ablation()[1:8]]
    assert alone == [[kind] for kind in STRATEGIES.values()]
    everything = [type(policy) for policy in PRESETS["paper"]()]
    for name, dropped in zip(ablation()[9:], STRATEGIES.values(), strict=True):
        assert rival_named(name)(job) == [kind for kind in everything if kind is not dropped]


@pytest.mark.parametrize("name", [*OPTIMIZERS, *ablation()])
def test_every_optimiser_can_be_sent_to_another_process(name: str) -> None:
    assert pickle.loads(pickle.dumps(rival_named(name))) is not None


@pytest.mark.parametrize("name", ["gpea", "dlpo:papre", "dlpo:TLR+TSB", "dlpo:paper-", "gepa:TLR", "dlpo:"])
def test_an_unknown_optimiser_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="`optimizers` must be among"):
        rival_named(name)


def test_the_valset_of_gepa_and_ours_is_the_same() -> None:
    ours, its = (run_cell(Cell("codes", name, 160, 0), setup, rival_named(name)) for name in ("dlpo", "gepa"))
    assert ours.plan["num_val_examples"] == its.plan["num_val_examples"] == plans.valset_share(160, 20)


def test_a_cell_of_ours_counts_what_was_refused_and_which_sources_were_accepted(tmp_path: Path) -> None:
    add_cell(tmp_path, run_cell(Cell("codes", "dlpo", 160, 0), setup, rival_named("dlpo")))
    (plan,) = (cell.plan for cell in read_cells(tmp_path))
    assert {*plan["refused"]} <= {*RULES, TOO_MANY, TOGETHER, LEFT_OUT}
    assert {*plan["accepted"]} <= {*SOURCES}
    assert sum(plan["accepted"].values()) > 0
