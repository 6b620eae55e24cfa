from __future__ import annotations

import json
import random
from pathlib import Path
from statistics import fmean
from typing import Any

import dspy
import numpy as np
import pytest

from dspy_dlpo import DLPOOptimizer
from dspy_dlpo.benchmarks.setups import setup_named
from dspy_dlpo.benchmarks.simulation.scripted import simulated_lm
from examples.benchmarks import bad_prompts, coverage, decisions, enforcement, engine, planted_faults
from tests.scripted import fields, scripted_lm


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ('ADD "Say which year is meant."', {"usable": 8, "broke a rule": 0}),
        (
            "DELETE 1\nDELETE 2\nDELETE 3\nDELETE 4\nDELETE 5\nADD Shout.",
            {"the bound on edits": 8, "protected text": 8},
        ),
        ("word " * 500, {"usable": 0, "broke a rule": 0}),
    ],
)
def test_enforcement_counts_what_a_model_breaks_and_nothing_is_broken_after_mending(
    reply: str, expected: dict[str, int]
) -> None:
    def answer(system: str, user: str) -> str:
        return fields(**{"rewritten" if "rewritten" in system else "edits": reply})

    for signature in (enforcement.ProposeEdits, enforcement.RewriteInstruction):
        with dspy.context(lm=scripted_lm(answer)):
            counts = enforcement.measure(signature, 8)
        if signature is enforcement.ProposeEdits:
            assert {key: counts[key] for key in expected} == expected
        assert counts["replies"] == 8
        assert not any(counts[f"{rule}, mended"] for rule in enforcement.RULES)


def test_enforcement_prints_a_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lm = scripted_lm(lambda system, user: fields(edits="DELETE 1", rewritten="Be kind."))
    monkeypatch.setattr(dspy, "LM", lambda name: lm)
    monkeypatch.setattr("sys.argv", ["enforcement", "--model", "any", "--num-requests", "2"])
    enforcement.main()
    out: Any = capsys.readouterr().out
    assert "| replies that | edits | whole rewrite |" in out
    assert "| broke a rule after mending | 0 | 0 |" in out


def test_sequential_test_pays_less_than_the_yardstick_and_errs_less_than_it_may() -> None:
    shares = {
        name: [
            decisions.measure(make(8, 0.95), cell, (1.0,), 50, 10, "test")
            for cell in decisions.cells((1.0,))
            if cell.temperature in (0.0, 0.05)
        ]
        for name, make in decisions.RULES.items()
    }
    paid = {name: fmean(each[0] for each in rows) for name, rows in shares.items()}
    assert paid["sequential test"] <= 0.60 < paid["normal bound"]
    assert fmean(each[2] for each in shares["sequential test"]) <= 0.05


def test_true_difference_and_share_of_discordant_pairs_are_those_of_the_cell() -> None:
    rng = random.Random(0)
    for sizes in decisions.SIZES.values():
        differences, threshold = decisions.draw(rng, decisions.Cell(-0.1, 0.4, 0.0), sizes, 20_000)
        assert fmean(differences) == pytest.approx(-0.1, abs=0.01)
        assert fmean(each != 0 for each in differences) == pytest.approx(0.4, abs=0.01)
        assert threshold == 0


def test_decisions_print_a_table_or_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(decisions, "POPULATIONS", (10,))
    monkeypatch.setattr("sys.argv", ["decisions", "--repetitions", "1"])
    decisions.main()
    table = capsys.readouterr().out
    assert "| right or wrong | 10 | sequential test |" in table
    monkeypatch.setattr("sys.argv", ["decisions", "--repetitions", "1", "--json"])
    decisions.main()
    rows = json.loads(capsys.readouterr().out)
    assert [row["rule"] for row in rows] == ["sequential test", "normal bound"] * 2
    assert f"| {rows[0]['paid']:.1%} |" in table


@pytest.mark.parametrize(("kind", "truth"), [("binary", "0"), ("binary", "+0.1"), ("graded", "0")])
def test_interval_of_the_best_of_ten_holds_the_true_gain_where_the_textbook_interval_does_not(
    kind: str, truth: str
) -> None:
    columns = coverage.measure(kind, truth, size=20, num_candidates=10, num_runs=100, seed=0)
    assert fmean(columns["chosen"]) > 0.9
    assert fmean(columns["held"]) >= 0.95
    assert fmean(columns["textbook held"]) < 0.95


@pytest.mark.parametrize("draw", [coverage.binary_scores, coverage.graded_scores])
def test_coverage_draws_candidates_of_the_gains_it_takes_for_true(draw: Any) -> None:
    gains = [-0.1, 0.0, 0.1, 0.2]
    scores = draw(np.random.default_rng(0), gains, 200_000)
    assert 0 <= scores.min() < scores.max() <= 1
    assert (scores[1:] - scores[0]).mean(axis=1) == pytest.approx(gains, abs=0.005)


def test_coverage_prints_a_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(coverage, "SIZES", (10,))
    monkeypatch.setattr(coverage, "NUM_CANDIDATES", (1,))
    monkeypatch.setattr("sys.argv", ["coverage", "--runs", "5"])
    coverage.main()
    out = capsys.readouterr().out
    assert out.count("| 10 | 1 |") == 6
    assert "Least coverage of all rows: 100.0%" in out


def test_engine_prints_its_figures(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--latency", "0.001", "--num-threads", "4", "--batch-sizes", "8", "--max-metric-calls", "300"]
    monkeypatch.setattr("sys.argv", ["engine", *sizes, "--num-examples", "4", "--size", "200"])
    engine.main()
    out = capsys.readouterr().out
    assert "8: seconds" in out
    assert "4 threads: dspy.Evaluate" in out
    assert "Opening a ledger of 200 evaluations: seconds" in out
    assert "start with log_dir" in out


def test_world_of_the_engine_benchmark_can_be_learned() -> None:
    trainset = engine.examples(120)[:20]
    with dspy.context(lm=simulated_lm(engine.script)):
        optimizer = DLPOOptimizer(metric=engine.metric, num_steps=4, num_threads=2, verbose=False)
        optimized = optimizer.compile(engine.program(), trainset=trainset * 2, valset=trainset)
    scores = optimized.detailed_results.val_aggregate_scores
    assert max(scores) > scores[0] == 0


def test_gradients_of_planted_faults_land_on_the_fault_and_repairs_take_fewer_steps_with_the_chain() -> None:
    chain, others = (
        list(planted_faults.runs(mode, [1], [planted_faults.Cycle])) for mode in ("chain", "no chain, round robin")
    )
    assert len(chain) == len(planted_faults.Cycle.stages)
    assert fmean(run.landed for run in chain) >= 0.95
    assert fmean(run.steps for run in chain) <= fmean(run.steps for run in others) / 2


def test_bad_prompt_does_harm_and_the_table_counts_the_runs_that_recovered(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    plain = setup_named("simulated/easy", None, None, None)
    good, bad = plain(0), bad_prompts.spoiled(plain, "easy", 0)
    assert good.score is not None and bad.score is not None
    assert bad.score(bad.task.program) < good.score(good.task.program) / 2
    options = ["--tasks", "simulated/easy", "--optimizers", "dlpo", "--seeds", "1", "--budget", "100"]
    monkeypatch.setattr("sys.argv", ["bad_prompts", *options, "--folder", str(tmp_path)])
    bad_prompts.main()
    lines = capsys.readouterr().out.splitlines()
    assert "1 recovered" in lines[0] and lines[0].startswith("simulated/easy human")
    assert "0 recovered" in lines[1] and lines[1].startswith("simulated/easy none")
    assert lines[2].startswith("simulated/easy dlpo")
