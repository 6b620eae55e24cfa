"""The whole run on a simulated model that shows newcomers what to expect."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from dspy_dlpo import load_result
from dspy_dlpo.benchmarks import demo as simulated
from dspy_dlpo.benchmarks.simulation.scripted import field, fields
from dspy_dlpo.local.quickstart import FORM, NOTES, load_orders
from tests.command_line import call


def test_demo_shows_a_whole_run_in_seconds_says_it_is_simulated_and_names_the_report(tmp_path: Path) -> None:
    began = time.monotonic()
    told = call("demo", "--log-dir", tmp_path / "demo")
    assert time.monotonic() - began < 20
    assert told.exit_code == 0, told.output
    assert "SIMULATED" in told.stdout.splitlines()[0]
    assert "Cost of optimising: nothing, no model was asked" in told.stdout
    report = tmp_path / "demo" / "report.html"
    assert f"The report of this simulated run: {report}" in told.stdout
    assert report.read_text(encoding="utf-8").startswith("<!")
    assert told.stdout.rstrip().endswith("dspy-dlpo quickstart")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_demo_raises_the_score(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulated, "_LATENCY", 0.0)
    simulated.demo(tmp_path, seed=seed, say=lambda text: None)
    result = load_result(tmp_path)
    assert any(record.accepted for record in result.history)
    assert result.gain.low > 0


def test_clerk_writes_a_part_right_only_if_told_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulated, "_SLIPS", 0.0)
    for order in [each for part in load_orders() for each in part]:
        user = f"[[ ## message ## ]]\n{order.message}"
        assert simulated.clerk(" ".join([*NOTES.values(), FORM]), user) == fields(line=order.line)
        parts = order.line.split("; ")
        assert not any(part in field(simulated.clerk("Write the order line.", user), "line") for part in parts)
        for place, rule in enumerate(NOTES.values()):
            line = field(simulated.clerk(f"{rule} {FORM}", user), "line").split("; ")
            assert [one == other for one, other in zip(line, parts, strict=True)] == [
                each == place for each in range(4)
            ]
