from __future__ import annotations

import inspect
import re
from pathlib import Path

import dspy
import pytest

from dspy_dlpo import DLPOOptimizer, Tuning
from tests.scripted import examples, scripted_lm

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md", "examples/benchmarks/README.md")


def test_examples_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lm = scripted_lm()
    scope = {"trainset": examples(24), "valset": examples(10, 100), "testset": examples(20, 200)}
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter()):
        for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
            exec(code, scope)
    assert scope["result"].gain.num_examples == 10
    assert (tmp_path / "optimized.json").is_file()
    assert (tmp_path / "runs" / "qa" / "ledger.sqlite").is_file()


def test_each_of_the_two_commands_is_one_line() -> None:
    (block,) = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    commands = block.splitlines()
    assert [re.findall(r"pip install -q '\.\[(\w+)\]'", command) for command in commands] == [["local"], ["test"]]


def test_table_for_those_who_come_from_other_optimisers_names_arguments_that_there_are() -> None:
    questions = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"\| here \|(.*?)\n\n", questions, re.DOTALL)
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    for here, *others in rows:
        for tuning, name in re.findall(r"`(tuning=Tuning\()?(\w+)[^`]*`", here):
            own = (Tuning if tuning else DLPOOptimizer).__dataclass_fields__
            assert name in own or name in ("dspy", "detailed_results")
        for optimizer, cell in zip(header, others, strict=True):
            kind = getattr(dspy, optimizer)
            there = {*inspect.signature(kind.__init__).parameters, *inspect.signature(kind.compile).parameters}
            assert {*re.findall(r"`(\w+)`", cell)} <= there, optimizer


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_of_the_documents_lead_to_files_and_tests_that_there_are(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link]
    assert [link for link in links if not ((ROOT / name).parent / link).exists()] == []
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    assert [test for test in re.findall(r"`(test_\w+)`", text) if f"def {test}(" not in code] == []
