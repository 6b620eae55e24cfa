from __future__ import annotations

import re
from pathlib import Path

import dspy
import pytest

from tests.scripted import examples, scripted_lm

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_examples_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lm = scripted_lm()
    scope = {"trainset": examples(24), "valset": examples(10, 100), "testset": examples(20, 200)}
    scope["prices"] = {lm.model: (1.0, 2.0)}
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter()):
        for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
            exec(code, scope)
    assert scope["result"].gain.num_examples == 10
    assert (tmp_path / "optimized.json").is_file()
    assert (tmp_path / "runs" / "qa" / "ledger.sqlite").is_file()


def test_each_of_the_two_commands_is_one_line() -> None:
    commands = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    assert len(commands) == 2
    assert all(command.count("\n") == 1 and "pip install" in command for command in commands)
