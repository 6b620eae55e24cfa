from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_dlpo.local import engine as local
from dspy_dlpo.local import quickstart as orders
from tests.command_line import call


def test_quickstart_runs_on_the_model_of_this_machine_unless_told_otherwise(
    lm: dspy.LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(local, "local_lm", lambda **settings: lm)
    monkeypatch.setattr(orders, "run", lambda *models, **settings: asked.append((models, settings)))
    told = call("quickstart", "--log-dir", tmp_path, "--seed", 3)
    ((model, prompt_model), settings) = asked[0]
    assert (model, prompt_model.kwargs["max_tokens"], told.exit_code) == (lm, 120, 0)
    assert (settings["log_dir"], settings["seed"], settings["num_threads"]) == (tmp_path, 3, 1)
    assert told.stdout == f"\nRead the run with: dspy-dlpo report {tmp_path}\n"
    call("quickstart", "--model", "openai/small", "--prompt-model", "openai/large")
    (models, settings) = asked[1]
    assert [each.model for each in models] == ["openai/small", "openai/large"]
    assert settings["num_threads"] == 8


def test_quickstart_without_the_local_extra_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    monkeypatch.setattr(local, "_cache_folder", lambda: tmp_path / "cache")
    told = call("quickstart", "--log-dir", tmp_path)
    assert told.exit_code == 1
    assert "pip install 'dspy-dlpo[local]'" in told.stderr
