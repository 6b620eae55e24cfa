from __future__ import annotations

from statistics import fmean
from typing import Any

import dspy
import pytest

from dspy_dlpo.benchmarks import enforcement, planted_faults
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


def test_gradients_of_planted_faults_land_on_the_fault_and_repairs_take_fewer_steps_with_the_chain() -> None:
    chain, others = (
        list(planted_faults.runs(mode, [1], [planted_faults.Cycle])) for mode in ("chain", "no chain, round robin")
    )
    assert len(chain) == len(planted_faults.Cycle.stages)
    assert fmean(run.landed for run in chain) >= 0.95
    assert fmean(run.steps for run in chain) <= fmean(run.steps for run in others) / 2
