from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from dspy_dlpo.local import quickstart as orders
from dspy_dlpo.local import weights
from tests.command_line import call


def test_quickstart_hands_its_options_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(orders, "quickstart", lambda *models, say, **settings: asked.append((*models, settings)))
    assert call("quickstart", "--log-dir", tmp_path, "--seed", 3).exit_code == 0
    call("quickstart", "--model", "openai/small", "--prompt-model", "openai/large", "--num-threads", 5)
    assert asked == [
        (None, None, {"max_metric_calls": 80, "num_threads": None, "seed": 3, "log_dir": tmp_path}),
        (
            "openai/small",
            "openai/large",
            {"max_metric_calls": 80, "num_threads": 5, "seed": 0, "log_dir": Path("runs/quickstart")},
        ),
    ]


def test_quickstart_without_the_local_extra_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino_genai", None)
    monkeypatch.setattr(weights, "_cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(weights, "_in_hub_cache", lambda weights: None)
    told = call("quickstart", "--log-dir", tmp_path)
    assert told.exit_code == 1
    assert "pip install 'dspy-dlpo[local]'" in told.stderr
    assert "is fetched first (1.1 GB, once)" in told.stdout


def test_quickstart_with_too_little_memory_says_so_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*models: Any, **settings: Any) -> None:
        raise MemoryError("The local model needs about 4.1 GB of memory, but 1.0 GB are free.")

    monkeypatch.setattr(orders, "quickstart", refuse)
    told = call("quickstart")
    assert (told.exit_code, told.stdout) == (1, "")
    assert told.stderr == "dspy-dlpo: The local model needs about 4.1 GB of memory, but 1.0 GB are free.\n"
