from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.adapters.baml_adapter import BAMLAdapter
from dspy.adapters.two_step_adapter import TwoStepAdapter
from hypothesis import given
from hypothesis import strategies as st

from dspy_dlpo.core.edits import Edit, apply
from dspy_dlpo.descent.critic import Critique
from dspy_dlpo.descent.replies import as_lines, content, is_nothing, read_edits, read_requirements, read_rewrite
from dspy_dlpo.descent.sources.proposer_edits import ProposeEdits
from tests.scripted import replying, scripted_lm

SENTENCES = ("Read the question. ", "Think about it. ", "Answer in one word.")
ROWS = [json.loads(line) for line in (Path(__file__).parent / "replies.jsonl").read_text(encoding="utf-8").splitlines()]
CRITIC = [row for row in ROWS if row["role"] == "critic"]
PROPOSER = [row for row in ROWS if row["role"] == "proposer"]


@pytest.mark.parametrize("row", CRITIC, ids=lambda row: row["what"])
def test_requirements_are_read_by_their_form(row: dict[str, Any]) -> None:
    read = read_requirements(row["reply"])
    assert (read.marked, read.loose) == (row["marked"], row["loose"])


@pytest.mark.parametrize("row", PROPOSER, ids=lambda row: row["what"])
def test_edits_are_read_by_their_form(row: dict[str, Any]) -> None:
    edits = read_edits(row["reply"], SENTENCES)
    assert [[edit.op, edit.at, edit.text] for edit in edits] == row["edits"]


def test_corpus_of_replies_is_large() -> None:
    assert len({(row["role"], row["reply"]) for row in ROWS}) == len(ROWS) >= 60


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("add: Be brief.", Edit("add", 2, "Be brief.")),
        ('- **ADD** after 1: "Be brief."', Edit("add", 0, "Be brief.")),
        ("2) Replace sentence 2 with: Think hard.", Edit("replace", 1, "Think hard.")),
        ("Remove 3", Edit("delete", 2)),
        ('ADD "Refuse because policy forbids it." BECAUSE x', Edit("add", 2, "Refuse because policy forbids it.", "x")),
        ('ADD "Be brief. BECAUSE it rambles."', Edit("add", 2, "Be brief.", "it rambles.")),
        ('ADD "Be brief." BECAUSE it is "long"', Edit("add", 2, "Be brief.", 'it is "long')),
    ],
)
def test_edit_lines_are_read_as_models_write_them(reply: str, expected: Edit) -> None:
    assert read_edits(reply, SENTENCES) == [expected]


def test_whole_rewrite_of_a_field_of_its_own_becomes_edits_that_must_help() -> None:
    edits = read_rewrite("```\nRead the question. Think twice. Answer in one word. Be kind.\n```", SENTENCES)
    assert [(edit.op, edit.at, edit.text) for edit in edits] == [("replace", 1, "Think twice."), ("add", 2, "Be kind.")]
    assert all(edit.must_help for edit in edits)
    assert read_rewrite("NOTHING", SENTENCES) == read_rewrite(" ", SENTENCES) == []


@given(st.text(max_size=200))
def test_no_text_breaks_a_reader(text: str) -> None:
    read = read_requirements(text)
    assert all(item.strip() and not is_nothing(item) for item in [*read.marked, *read.loose])
    assert all(edit.op in ("add", "replace", "delete") for edit in read_edits(text, SENTENCES))
    apply(SENTENCES, read_rewrite(text, SENTENCES))
    assert content(as_lines(text)) is not None


@given(
    st.lists(
        st.sampled_from(["Sorry.", "I cannot.", "好的。", "Voilà :", "Let me think", "42", "{", "]", '"']), max_size=6
    )
)
def test_reply_without_an_edit_holds_no_edit(lines: list[str]) -> None:
    assert read_edits("\n".join(lines), SENTENCES) == []


@pytest.mark.parametrize(
    "adapter",
    [dspy.ChatAdapter(), dspy.JSONAdapter(), dspy.XMLAdapter(), BAMLAdapter()],
    ids=lambda adapter: type(adapter).__name__,
)
@pytest.mark.parametrize("typed", [False, True], ids=["text", "list"])
def test_lists_are_read_whatever_the_adapter(adapter: Any, typed: bool) -> None:
    rules = ["Name the month.", "Don't guess the year."]
    value: Any = rules if typed else "\n".join(f"- {rule}" for rule in rules)
    edits: Any = [f'ADD "{rule}"' for rule in rules] if typed else "\n".join(f'ADD "{rule}"' for rule in rules)
    for signature, name, held in ((Critique, "requirements", value), (ProposeEdits, "edits", edits)):
        written = adapter.format_assistant_message_content(signature, {name: held})
        reply = adapter.parse(signature, written)[name]
        if signature is Critique:
            assert read_requirements(reply).marked == rules
        else:
            assert [edit.text for edit in read_edits(reply, SENTENCES)] == rules


@pytest.mark.parametrize(
    "held",
    ["- Name the month.\n- Don't guess the year.", '["Name the month.", "Don\'t guess the year."]'],
    ids=["lines", "list"],
)
def test_lists_are_read_where_a_second_model_extracts_them(held: str) -> None:
    adapter = TwoStepAdapter(scripted_lm(replying(requirements=held)))
    reply = adapter.parse(Critique, "Two things are missing: the month is not named, and the year is guessed.")
    assert read_requirements(reply["requirements"]).marked == ["Name the month.", "Don't guess the year."]
