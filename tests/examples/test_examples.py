from __future__ import annotations

import importlib
import inspect
import os
import re
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_dlpo import TextualLearningRate
from tests.scripted import Oracle, examples

FOLDER = Path(__file__).parents[2] / "examples"
OFFLINE = [path.stem for path in sorted(FOLDER.glob("0[2-79]*.py"))]


@cache
def output(name: str, *arguments: str) -> str:
    """What an example prints when a user runs it."""
    run = subprocess.run(
        [sys.executable, str(FOLDER / f"{name}.py"), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(FOLDER.parent)},
        timeout=60,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # A shell's background jobs ignore Ctrl-C.
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def section(text: str, name: str) -> str:
    return text.partition(f"--- {name} ---\n")[2].partition("\n---")[0].partition("\nTest score")[0]


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module
    for name in [name for name in sys.modules if name[:2].isdigit() or name in ("offline", "tickets")]:
        del sys.modules[name]


def test_policy_of_ones_own_takes_under_forty_lines_and_freezes_what_has_stood(
    lm: dspy.LM, make: Any, example: Any
) -> None:
    policy = example("06_your_own_policy").TextualFreezing
    assert len(inspect.getsource(policy).splitlines()) < 40
    optimizer = make(policies=[TextualLearningRate(1), policy(age=1)], num_steps=6)
    result = optimizer.compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results
    frozen = [len(request.frozen) for record in result.history for request in record.requests]
    assert frozen[0] == 0
    assert frozen == sorted(frozen)
    assert frozen[-1] >= 2
    assert result.best_candidate["self"].startswith("Answer the question.\n")


@pytest.mark.parametrize("name", OFFLINE)
def test_example_runs_offline_says_that_it_is_simulated_and_raises_its_test_score(name: str) -> None:
    scores = re.findall(r"(?i)test score ([\d.]+) -> ([\d.]+)", output(name))
    assert "SIMULATED" in output(name).splitlines()[0]
    assert scores and all(float(after) >= float(before) + 0.5 for before, after in scores)


def test_demo_is_a_whole_run_that_says_it_is_simulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = output("00_demo")
    scores = re.search(r"([\d.]+) before, ([\d.]+) after", text)
    assert "SIMULATED" in text.splitlines()[0]
    assert scores and float(scores[2]) >= float(scores[1]) + 50
    assert (tmp_path / "runs" / "demo" / "report.html").is_file()


def test_simulated_models_know_no_rule_of_any_example(example: Any) -> None:
    scripts = (FOLDER / "offline.py").read_text(encoding="utf-8")
    secrets = [*example("tickets").TEAMS.values(), *example("03_rag").NUMBERS.values(), "offer"]
    assert [secret for secret in secrets if secret in scripts] == ["Support"]  # What the task model guesses.


def test_tickets_are_distinct_and_every_split_has_every_team(example: Any) -> None:
    splits = example("tickets").load_tickets()
    assert [len(split) for split in splits] == [24, 12, 18]
    assert len({ticket.message for split in splits for ticket in split}) == 54
    assert all({ticket.team for ticket in split} == set(example("tickets").TEAMS.values()) for split in splits)


def test_both_metrics_lead_to_rules_in_the_predictors_they_are_about() -> None:
    for text in output("02_your_own_metric").split("\n\n")[1:3]:
        assert section(text, "route").count("Send messages about the") == 5
        assert section(text, "reply").splitlines()[1:] == ["Sign with the name of the team."]


def test_each_rule_of_the_rag_pipeline_goes_where_it_belongs() -> None:
    text = output("03_rag")
    assert re.search(r"critic blames write_query for (\d+)%", text)
    assert section(text, "write_query").count("Search for the") == 3
    assert section(text, "answer").count(".") == 2


def test_the_agents_tool_protocol_stays_while_its_instructions_change() -> None:
    text = output("04_react")
    assert "The tool protocol stands as it was: True" in text
    assert "Ask the tool offer before you finish." in section(text, "react")
    assert "Write prices in cents." in section(text, "extract")


def test_run_that_is_stopped_and_resumed_pays_nothing_twice() -> None:
    text = output("05_resume_and_budgets")
    ends = re.findall(r"limit \d+: (\d+) metric calls more, then: (.*)", text)
    whole, made = re.findall(r"whole run: (\d+); really made: (\d+)", text)[0]
    assert made == str(sum(int(paid) for paid, _ in ends))
    assert (
        0 <= int(made) - int(whole) <= 20
    )  # The choice at the end of a limit meets examples that the whole run does not.
    for (paid, end), reason in zip(ends, ["Ctrl-C", "STOP", "max_metric_calls", "perfect"], strict=True):
        assert int(paid) > 0
        assert reason in end


def test_demos_are_added_to_the_instruction_that_dlpo_wrote() -> None:
    text = output("07_better_together")
    scores = {stages: float(score) for score, stages in re.findall(r"valset +([\d.]+) after: (.*)", text)}
    assert scores["dlpo -> demos"] > scores["dlpo"] > scores["nothing"]
    assert "Send messages about the" in section(text, "instruction")
    assert " -> " in section(text, "demos")


def test_comparison_gives_each_optimiser_the_same_seeds_and_budget_and_shows_what_it_spent() -> None:
    text = output("08_comparing_optimisers")
    rows = {row.split()[0]: [float(cell) for cell in row.split()[1:]] for row in text.splitlines()[3:]}
    assert "SIMULATED" in text.splitlines()[0]
    assert list(rows) == ["none", "copro", "gepa", "dlpo"]
    assert all(len(row) == 1 + 3 + 2 for row in rows.values())
    assert rows["none"][4] == 0 and 0 < rows["dlpo"][4] <= 200
    assert rows["dlpo"][0] > rows["none"][0] + 0.2


def test_differences_on_the_real_model_are_those_of_the_tables() -> None:
    names = {
        "none": "no optimisation",
        "human": "by hand",
        "copro": "COPRO",
        "gepa": "GEPA",
        "mipro": "MIPROv2, with demos",
    }
    tables = (FOLDER / "benchmarks" / "README.md").read_text()
    table = tables.partition("Ours less the others, ")[2].partition("\n\n| |")[2].partition("\n\n")[0]
    header, _, *rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in table.splitlines()]
    written = {(name, column): cell for name, *cells in rows for column, cell in zip(header, cells, strict=True)}
    printed = output("benchmarks/differences", str(FOLDER / "benchmarks" / "local"))
    lines = re.findall(r"^(\w+) +(all tasks|\S+) +\d+ (.*)$", printed, re.MULTILINE)
    found = {(names[other], task.removeprefix("bbh/")): difference for other, task, difference in lines}
    assert found == written
    assert {name for name, _ in found} == {*names.values()}
