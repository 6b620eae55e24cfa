from __future__ import annotations

import json
import re
import subprocess
import sys
import webbrowser
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_dlpo import DLPOResult, load_result
from dspy_dlpo.runtime.ledger import LEDGER, Ledger
from dspy_dlpo.views.runs import keep_end, keep_start
from tests.command_line import call
from tests.scripted import Oracle, Program, examples

HOSTILE = "Say [bold]this[/bold] and [/] :smile:.\n\x1b[2J\u202edrawkcab\r\x07\x9b31m\u200f"


@pytest.fixture
def run(lm: dspy.LM, make: Any, tmp_path: Path) -> Path:
    """A run of two predictors, of which one has to learn."""
    program = Program(
        lambda self, question: [self.aside(question=question), self.answer(question=question)][1], **parts()
    )
    folder = tmp_path / "runs" / "qa"
    make(log_dir=folder, num_steps=6).compile(program, trainset=examples(40))
    return folder


def parts() -> dict[str, Any]:
    return {"aside": dspy.Predict(Oracle), "answer": dspy.Predict(Oracle)}


@pytest.fixture
def oracle(lm: dspy.LM, make: Any, tmp_path: Path) -> Path:
    """A run of one predictor."""
    folder = tmp_path / "runs" / "oracle"
    make(log_dir=folder, num_steps=6).compile(dspy.Predict(Oracle), trainset=examples(40))
    return folder


@pytest.fixture
def hostile(oracle: Path) -> Path:
    """A run whose program has an instruction that would steer terminal and markup."""
    result = load_result(oracle)
    best = replace(result.candidates[result.best_idx], instructions={"self": HOSTILE})
    candidates = (*result.candidates[: result.best_idx], best, *result.candidates[result.best_idx + 1 :])
    folder = oracle.parent / "[red]hostile"
    write(folder, replace(result, candidates=candidates))
    return folder


def write(folder: Path, result: DLPOResult) -> None:
    ledger = Ledger(folder, {})
    keep_start(ledger, result.run)
    keep_end(ledger, result)
    ledger.close()


# The command as a whole.


def test_installed_command_tells_its_version_and_its_commands() -> None:
    command = [sys.executable, "-c", "from dspy_dlpo.benchmarks.command import app; app(prog_name='dspy-dlpo')"]
    told = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert told.stdout == f"dspy-dlpo {version('dspy-dlpo')}\n"
    failed = subprocess.run([*command, "show", "nowhere"], capture_output=True, text=True, check=False)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr == f"dspy-dlpo: No run in nowhere: it has no {LEDGER}. Give the `log_dir` of a run.\n"


@pytest.mark.parametrize(
    "arguments", [(), ("dance",), ("show",), ("export", "run", "--format", "yaml"), ("export", "run", "--step", "0")]
)
def test_wrong_use_ends_with_code_2(arguments: tuple[str, ...]) -> None:
    assert call(*arguments).exit_code == 2


@pytest.mark.parametrize("command", ["show", "export", "report"])
@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("absent", "No run in"),
        ("damaged", "is damaged"),
        ("newer", "is of a newer dspy_dlpo"),
        ("going on", "the run is going on"),
        ("not begun", "ended before it began"),
    ],
)
def test_run_that_cannot_be_read_is_told_of_in_one_line(tmp_path: Path, command: str, state: str, message: str) -> None:
    spoil(tmp_path, state)
    ledger = Ledger(tmp_path, {}) if state == "going on" else None
    try:
        result = call(command, tmp_path)
    finally:
        if ledger:
            ledger.close()
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("dspy-dlpo: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def spoil(folder: Path, state: str) -> None:
    if state in ("absent", "going on"):
        return
    Ledger(folder, {}).close()
    content = bytearray((folder / LEDGER).read_bytes())
    if state == "damaged":
        content[200:] = b"\xff" * (len(content) - 200)
    elif state == "newer":
        content[60:64] = (99).to_bytes(4, "big")
    (folder / LEDGER).write_bytes(content)


# show


def test_show_lists_every_step_the_final_prompt_the_gain_and_the_cost(run: Path) -> None:
    result, told = load_result(run), call("show", run).stdout
    assert f"Program in {run}: {result.stopped}" in told
    for record in result.history:
        assert f"{record.step + 1}  " in told
    assert "accepted" in told
    assert f"\nanswer:\n{result.best_candidate['answer']}\n" in told
    assert f"Valset: 0.000 (all 16) before, 1.000 (all 16) after, gain {result.gain}" in told
    assert re.search(rf"end +final choice +1\.000 \(all 16\) +{result.spent.metric_calls}", told)
    assert f"Spent: {result.spent.metric_calls} metric calls" in told


def test_show_as_json_has_the_whole_result(run: Path) -> None:
    told = json.loads(call("show", run, "--json").stdout)
    assert told == json.loads(json.dumps(load_result(run).to_dict()))


def test_text_of_a_model_neither_steers_the_terminal_nor_is_taken_for_markup(hostile: Path) -> None:
    told = call("show", hostile).stdout
    assert "\x1b" not in told
    assert "Say [bold]this[/bold] and [/] :smile:.\n\\x1b[2J\\u202edrawkcab\\r\\x07\\x9b31m\\u200f" in told
    assert "[red]hostile" in told
    assert "[red]hostile" in call("runs", hostile.parent).stdout


def test_json_has_no_character_that_steers_a_terminal_and_says_the_same(hostile: Path) -> None:
    for command in ("show", "runs"):
        told = call(command, hostile if command == "show" else hostile.parent, "--json").stdout
        assert all(each.isprintable() or each == "\n" for each in told)
    told = call("show", hostile, "--json").stdout
    assert "\\u009b" in told
    assert json.loads(told)["candidates"][load_result(hostile).best_idx]["instructions"]["self"] == HOSTILE


@pytest.mark.parametrize("command", ["show", "runs"])
def test_run_that_did_not_end_is_not_shown_as_one_without_gain(oracle: Path, command: str) -> None:
    going_on = unended(oracle)
    told = call(command, going_on if command == "show" else going_on.parent).stdout
    assert "not measured" in told
    assert "not ended" in told
    assert "final choice" not in told
    rows = json.loads(call("runs", going_on.parent, "--json").stdout)
    assert [row["gain"] for row in rows if row["run"] == str(going_on)] == [None]


def unended(folder: Path) -> Path:
    """Return the folder of a run that was killed after its second step."""
    result = load_result(folder)
    killed = folder.with_name("killed")
    ledger = Ledger(killed, {})
    keep_start(ledger, result.run)
    for record in result.history[:2]:
        ledger.add_step(record, [])
    ledger.close()
    return killed


# export


@pytest.mark.parametrize(("kept", "said"), [(2, "This program is the best so far"), (0, "the student's own, since")])
def test_export_of_a_run_that_did_not_end_says_what_it_hands_out(oracle: Path, kept: int, said: str) -> None:
    result, killed = load_result(oracle), oracle.with_name("killed")
    write(killed, result)
    ledger = Ledger(killed, {})
    keep_start(ledger, result.run)
    for record in result.history[:kept]:
        ledger.add_step(record, [])
    ledger.close()
    told = call("export", killed, "--format", "text")
    assert told.exit_code == 0
    assert said in told.stderr
    assert "has not ended" not in call("export", oracle, "--format", "text").stderr


def test_exported_program_is_loaded_by_dspy_and_has_the_best_instructions(run: Path, tmp_path: Path) -> None:
    assert call("export", run, "--output", tmp_path / "best.json").exit_code == 0
    program = Program(lambda self, question: None, **parts())
    program.load(tmp_path / "best.json")
    found = {name: predictor.signature.instructions for name, predictor in program.named_predictors()}
    assert found == load_result(run).best_candidate


def test_exported_program_is_what_dspy_itself_saves(lm: dspy.LM, make: Any, tmp_path: Path) -> None:
    student = dspy.Predict(Oracle)
    student.demos = [dspy.Example(question="What of all topics?", answer="None.")]
    program = make(log_dir=tmp_path / "run").compile(student, trainset=examples(40))
    program.save(tmp_path / "saved.json")
    saved = json.loads((tmp_path / "saved.json").read_text())
    exported = json.loads(call("export", tmp_path / "run").stdout)
    del saved["metadata"]["dependency_versions"]["cloudpickle"]  # No pickle is in it.
    assert exported == saved


def test_what_any_step_tried_can_be_exported(oracle: Path) -> None:
    result = load_result(oracle)
    first = result.history[0]
    assert first.trial is not None
    (tried,) = (each for each in first.candidates if each.id == first.trial.candidate)
    told = call("export", oracle, "--step", 1, "--format", "text").stdout
    assert told == tried.instructions["self"] + "\n"
    assert tried.instructions != result.best_candidate
    assert json.loads(call("export", oracle, "--step", 1).stdout)["signature"]["instructions"] == told[:-1]


def test_exported_text_is_to_the_letter_in_a_file(hostile: Path, tmp_path: Path) -> None:
    call("export", hostile, "--format", "text", "--output", tmp_path / "prompt.txt")
    assert (tmp_path / "prompt.txt").read_bytes().decode() == HOSTILE + "\n"


def test_exported_text_of_several_predictors_names_them(run: Path) -> None:
    best = load_result(run).best_candidate
    told = call("export", run, "--format", "text").stdout
    assert told == f"[aside]\n{best['aside']}\n\n[answer]\n{best['answer']}\n"


def test_step_that_tried_nothing_or_is_not_there_is_told(lm: dspy.LM, make: Any, tmp_path: Path) -> None:
    make(log_dir=tmp_path, num_steps=6, policies="none").compile(dspy.Predict(Oracle), trainset=examples(40))
    idle = next(record for record in load_result(tmp_path).history if record.trial is None)
    told = call("export", tmp_path, "--step", idle.step + 1)
    assert (told.exit_code, told.stderr) == (
        1,
        f"dspy-dlpo: Step {idle.step + 1} tried nothing ({idle.outcome}). Give another step.\n",
    )
    assert "`--step` must be at most" in call("export", tmp_path, "--step", 99).stderr


# runs


def test_runs_lists_all_runs_and_why_some_cannot_be_read(oracle: Path, run: Path) -> None:
    (broken := run.parent / "broken").mkdir()
    (broken / LEDGER).write_text("no ledger at all, but long enough to be read as a file of another kind" * 20)
    going_on = Ledger(run.parent / "going on", {})
    try:
        rows = {Path(row["run"]).name: row for row in json.loads(call("runs", run.parent, "--json").stdout)}
        table = call("runs", run.parent)
    finally:
        going_on.close()
    assert [*rows] == ["broken", "going on", "oracle", "qa"]
    assert "is damaged or not a ledger" in rows["broken"]["error"]
    assert "the run is going on" in rows["going on"]["error"]
    result = load_result(oracle)
    assert rows["oracle"] == {
        "run": str(oracle),
        "program": "Predict",
        "steps": len(result.history),
        "before": 0.0,
        "after": 1.0,
        "gain": json.loads(json.dumps(result.to_dict()["gain"])),
        "cost": result.spent.cost,
        "stopped": result.stopped,
        "models": {"program": "scripted/model", "proposer": "scripted/model", "critic": "scripted/model"},
        "sessions": json.loads(json.dumps(result.to_dict()["run"]["sessions"])),
    }
    assert table.exit_code == 0
    for word in ("oracle", "Predict", "+1.000", result.stopped[:10], "going on"):
        assert word in table.stdout


def test_folder_without_runs_is_an_empty_list_for_scripts_and_an_error_for_people(tmp_path: Path) -> None:
    assert call("runs", tmp_path, "--json").stdout == "[]\n"
    assert (call("runs", tmp_path).exit_code, call("runs", tmp_path / "nowhere").exit_code) == (1, 1)
    assert "No runs in" in call("runs", tmp_path).stderr


# report


def test_report_is_written_into_the_runs_folder_and_opened_on_demand(
    oracle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    told = call("report", oracle)
    assert told.stdout == f"{oracle / 'report.html'}\n"
    assert "When the topic is alpha" in (oracle / "report.html").read_text()
    assert opened == []
    assert call("report", oracle, "--output", tmp_path / "page.html", "--open").exit_code == 0
    assert opened == [(tmp_path / "page.html").as_uri()]
