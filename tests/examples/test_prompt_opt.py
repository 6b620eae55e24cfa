from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_dlpo.benchmarks.simulation.scripted import field, fields, play, simulated_lm

FLAGS = (
    "--annealing 1 --tsa_tem 1 --tsa_tem_decay 1.75 --momentum 1 --train_acc_contras 1 --dy_lr 5 --lr 3 --dropout 0.3 "
    "--weight_decay 1"
)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    return importlib.import_module("prompt_opt")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "biggsm" / "all.jsonl"
    path.parent.mkdir()
    rows = [{"id": f"x-{i}", "question": f"What is {i} plus zero?", "answer": str(i)} for i in range(100, 140)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return tmp_path


def answer(system: str, user: str) -> str:
    number = re.findall(r"\d+", field(user, "question"))[0]
    return fields(reasoning="It stays.", answer=number if "Write digits only." in system else f"about {number}")


def criticise(system: str, user: str) -> str:
    return fields(requirements="Write digits only." if "number in digits" in user else "nothing")


def test_authors_command_runs_the_protocol_and_prints_scores_interval_and_cost(
    script: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def language_model(name: str, arguments: Any) -> dspy.LM:
        asked.append(name)
        return simulated_lm(play(answer, criticise))

    monkeypatch.setattr(script, "language_model", language_model)
    line = f"--task BIG_GSM {FLAGS} --test_engine small --evaluation_engine large --num_threads 2 --data-dir {folder}"
    script.main([*line.split(), "--log-dir", str(folder / "run")])
    told = capsys.readouterr().out
    assert asked == ["small", "large"]
    assert "biggsm: 12 train, 1 val and 27 test examples" in told  # 190, 10 and 410 of 610, for 40 rows.
    assert "Answer the question." in told
    assert "Write digits only." in told
    assert "Test score before: 0.0\nTest score after:  100.0\nGain: +100.0 points (95 % interval +" in told
    assert re.search(r"Optimising took \d+ metric calls, \d+ LM calls, \d+ tokens and 0\.00 dollars\.", told)
    assert "Testing both took 54 metric calls" in told


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("", ["TextualSimulatedAnnealing"]),
        ("--annealing 0", []),
        ("--annealing 0 --lr 5 --dropout 0.3", ["TextualLearningRate", "TextualDropout"]),
        ("--annealing 0 --dy_lr 5", ["TextualLearningRateDecay"]),
        ("--annealing 0 --momentum 1", ["TextualMomentum"]),
        ("--annealing 0 --train_acc_contras 1", ["TextualContrastiveLearning"]),
        ("--annealing 0 --weight_decay 1", ["TextualRegularization"]),
    ],
)
def test_each_flag_switches_on_its_strategy_and_no_other(script: Any, line: str, names: list[str]) -> None:
    assert [type(each).__name__ for each in script.policies_of(script.read_arguments(line.split()))] == names


@pytest.mark.parametrize(("first", "caps"), [(5, [5, 4, 3, 2, 1, 1]), (1, [1, 1]), (2, [2, 1, 1])])
def test_dy_lr_shrinks_the_cap_as_in_the_authors_code(script: Any, first: int, caps: list[int]) -> None:
    (policy,) = script.policies_of(script.read_arguments(["--annealing", "0", "--dy_lr", str(first)]))
    assert [policy.max_edits(step) for step in range(len(caps))] == caps


def test_temperature_is_divided_at_each_step(script: Any) -> None:
    (policy,) = script.policies_of(script.read_arguments(["--tsa_tem", "64", "--tsa_tem_decay", "4"]))
    assert [policy.temperature(step) for step in range(3)] == [64, 16, 4]
    assert policy.max_drop == 0.3


def test_temperature_that_would_rise_is_an_error(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        script.read_arguments(["--tsa_tem_decay", "0"])
    assert "--tsa_tem_decay must be at least 1, but got 0.0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("BIG_GSM", "biggsm"),
        ("GSM8K_DSPy", "gsm8k"),
        ("MATH", "math"),
        ("MGSM", "mgsm"),
        ("BBH_object_counting", "bbh/object_counting"),
        ("mgsm/de", "mgsm/de"),
    ],
)
def test_task_has_their_name_or_ours(script: Any, theirs: str, ours: str) -> None:
    assert script.task_name(theirs) == ours


def test_models_and_keys_come_from_the_environment_or_the_command_line(
    script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_ENGINE", "gpt-x")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://here/v1")
    arguments = script.read_arguments(["--evaluation_engine", "other/y", "--api_key", "secret"])
    models = [script.language_model(each, arguments) for each in (arguments.test_engine, arguments.evaluation_engine)]
    assert [each.model for each in models] == ["openai/gpt-x", "other/y"]
    assert models[0].kwargs["api_base"] == "http://here/v1"
    assert models[0].kwargs["api_key"] == "secret"
