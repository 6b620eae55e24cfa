from __future__ import annotations

from typing import Any

import dspy
import pytest

from dspy_dlpo import DLPOOptimizer
from dspy_dlpo.benchmarks import enforcement, engine
from tests.scripted import fields, scripted_lm


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ('ADD "Say which year is meant."', {"usable": 8, "broke a rule": 0}),
        (
            "DELETE 1\nDELETE 2\nDELETE 3\nDELETE 4\nDELETE 5\nADD Shout.",
            {"the bound on edits": 8, "protected text": 8},
        ),
        ("word " * 500, {"`max_tokens`": 8, "protected text": 8, "broke a rule": 8}),
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
    with dspy.context(lm=engine.lm_of(engine.World())):
        optimizer = DLPOOptimizer(metric=engine.metric, num_steps=4, num_threads=2, verbose=False)
        optimized = optimizer.compile(engine.program(), trainset=trainset * 2, valset=trainset)
    scores = optimized.detailed_results.val_aggregate_scores
    assert max(scores) > scores[0] == 0
