from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_line import call


def test_bench_compares_on_a_simulated_task_and_keeps_what_it_has(tmp_path: Path) -> None:
    names = ("--optimizer", "none", "--optimizer", "human")
    arguments = ("bench", "simulated/easy", *names, "--seeds", 1, "--budget", 60, "--folder", tmp_path)
    told = call(*arguments)
    assert told.exit_code == 0, told.output
    assert "LiteLLM" not in told.stderr  # It would ask the network for prices.
    title, heading, *lines = told.stdout.splitlines()
    assert title == "simulated/easy, budget 60"
    assert heading.split()[:2] == ["optimiser", "seeds"]
    assert [line.split()[:2] for line in lines[:2]] == [["none", "1"], ["human", "1"]]
    assert lines[-1] == f"All columns: {tmp_path / 'table.md'}"
    assert {"cells.jsonl", "table.md", "table.json", "curves.svg"} <= {path.name for path in tmp_path.iterdir()}
    cells = (tmp_path / "cells.jsonl").read_text()
    rows = json.loads(call(*arguments, "--json").stdout)
    assert [(row["optimizer"], row["max_metric_calls"], row["num_seeds"]) for row in rows] == [
        ("none", 60, 1),
        ("human", 60, 1),
    ]
    assert (tmp_path / "cells.jsonl").read_text() == cells


def test_bench_tests_what_was_tuned_elsewhere(tmp_path: Path) -> None:
    call("bench", "simulated/easy", "--optimizer", "human", "--seeds", 2, "--folder", tmp_path / "tuned")
    told = call(
        "bench", "simulated/easy", "simulated/hard", "--from", tmp_path / "tuned", "--json", "--folder", tmp_path
    )
    rows = {row["task"]: row for row in json.loads(told.stdout)}
    assert {row["optimizer"] for row in rows.values()} == {"human from simulated/easy"}
    assert rows["simulated/easy"]["score"]["value"] > 0.9  # The rules of its own task; those of the other are others.
    assert rows["simulated/hard"]["score"]["value"] < 0.5


def test_bench_knows_the_ablation_by_name(tmp_path: Path) -> None:
    told = call(
        *[
            "bench",
            "simulated/easy",
            "--optimizer",
            "ablation",
            "--seeds",
            "1",
            "--budget",
            "160",
            "--json",
            "--folder",
        ],
        tmp_path,
    )
    names = [row["optimizer"] for row in json.loads(told.stdout)]
    assert len(names) == len(set(names)) == 16
    assert {"dlpo:none", "dlpo:TSA", "dlpo:paper", "dlpo:paper-TSA"} <= {*names}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gsm8k"], "`model` must be given for gsm8k"),
        (["simulated/easy", "gsm9k"], "`name` must be one of bbh, "),
        (["gsm8k", "--model", "openai/none", "--data-dir", "nowhere"], "`data_dir` must have rows of gsm8k"),
        (["--from", "."], "`cells` must hold a result with a score"),
        (["simulated/silly"], "A simulated task must be"),
        (["--optimizer", "luck"], "`optimizers` must be among"),
        (["--optimizer", "none", "--seeds", 1, "--reference", "luck"], "`--reference` must be one of"),
    ],
)
def test_bench_refuses_what_it_cannot_compare(tmp_path: Path, arguments: list[str], message: str) -> None:
    told = call("bench", *arguments, "--folder", tmp_path)
    assert told.exit_code == 1
    assert message in told.stderr


def test_bench_in_which_every_cell_was_skipped_has_not_succeeded(tmp_path: Path) -> None:
    told = call("bench", "simulated/easy", "--optimizer", "gepa", "--seeds", 1, "--budget", 1, "--folder", tmp_path)
    assert told.exit_code == 1
    assert "gepa: skipped: " in told.stdout
    assert told.stderr.endswith("No cell has a result: all were skipped or failed, for the reasons above.\n")


def test_wrong_name_is_refused_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    code = """
import sys
from typer.testing import CliRunner
from dspy_dlpo.benchmarks.command import app
for arguments in (["simulated/silly"], ["--optimizer", "luck"], ["--optimizer", "none", "--reference", "luck"]):
    assert CliRunner().invoke(app, ["bench", *arguments]).exit_code == 1
print([name for name in ("scipy", "matplotlib", "pandas", "litellm") if name in sys.modules])
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "[]\n"
