from __future__ import annotations

import json
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import dspy
import pytest

from dspy_dlpo.core.edits import Edit
from dspy_dlpo.core.records import Point, Refusal, TextualGradient, UpdateRequest
from dspy_dlpo.descent.examples import Examples
from dspy_dlpo.descent.screening import RULES, bounded, screen, size, up_to
from dspy_dlpo.runtime.data import prepare

HERE = Path(__file__).parent


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (HERE / name).read_text(encoding="utf-8").splitlines()]


class Tray(Enum):
    RED = "the red tray"
    BLUE = "the blue tray"


class Sort(dspy.Signature):
    """Sort the letter. Letters from courts go first."""

    letter: str = dspy.InputField()
    answer: str = dspy.OutputField()
    kind: Literal["complaint", "court order"] = dspy.OutputField()
    tray: Tray | None = dspy.OutputField()


def examples(trainset: list[dspy.Example], *instructions: str) -> Examples:
    return Examples(prepare(trainset, None, 0), instructions, [Sort])


INPUTS = [row["input"] for row in rows("inputs.jsonl")]
CORPUS = examples(
    [
        dspy.Example(letter=text, answer=row["answer"], source=row["source"]).with_inputs("letter")
        for text, row in zip(INPUTS, rows("inputs.jsonl"), strict=True)
    ],
    "Answer the question.",
)
REQUEST = UpdateRequest("self", ("Answer the question.",), TextualGradient("self", ()))


def refusals(text: str, of: Examples = CORPUS, request: UpdateRequest = REQUEST) -> list[Refusal]:
    return screen([Edit("add", 0, text)], request, of).refusals


@pytest.mark.parametrize("row", rows("rules.jsonl"), ids=lambda row: row["text"][:40])
def test_rules_pass(row: dict[str, Any]) -> None:
    assert refusals(row["text"]) == []


@pytest.mark.parametrize("row", rows("copies.jsonl"), ids=lambda row: row["text"][:40])
def test_copies_do_not_pass(row: dict[str, Any]) -> None:
    assert [each.rule for each in refusals(row["text"])] == [row["rule"]]


def test_corpora_are_large_and_in_eight_languages_at_least() -> None:
    for name in ("rules.jsonl", "copies.jsonl"):
        corpus = rows(name)
        assert len({row["text"] for row in corpus}) == len(corpus) >= 60
        assert len({row["language"] for row in corpus}) >= 8


@pytest.mark.parametrize(
    "text, gives_away",
    [
        ("The right answer is 'Yes'.", True),
        ("Answer Yes where the letter is signed.", True),
        ("The answer must be Yes or No, and nothing else.", False),
        ("The right answer is (B).", False),  # That of another example.
        ("Die richtige Antwort ist „Yes“.", True),
        ("Yesterday's letters go first.", False),
        ("正确答案是「是」。", True),
        ("答案必须是「是」或「否」。", False),
        ("答案是否", False),
        ("ответ Да", True),
        ("ответ: Дата", False),
        ("Write an option in brackets, such as (B). The right answer is 'Yes'.", True),
        ("Schreibe Yes oder No, sonst nichts. Die richtige Antwort ist Yes.", True),
        ("The answer must be Yes or No. The right answer is 'Yes'.", True),
        ("答案必须是「是」或「否」。正确答案是「是」。", True),
        ("Write Yes or No. Write nothing else.", False),
    ],
)
def test_text_with_the_answer_of_an_example_behind_it_and_no_other_answer_must_help(
    text: str, gives_away: bool
) -> None:
    labels = ["Yes", "No", "(B)", "是", "否", "Да", "Нет"] * 2
    trainset = [
        dspy.Example(letter=f"Letter {number}.", answer=label).with_inputs("letter")
        for number, label in enumerate(labels)
    ]
    behind = tuple(f"train:{number}" for number, label in enumerate(labels) if label in ("Yes", "是", "Да"))
    request = replace(REQUEST, gradient=TextualGradient("self", (Point("Be kind.", behind),)))
    kept, refused = screen([Edit("add", 0, text)], request, examples(trainset))
    assert refused == []
    assert [edit.must_help for edit in kept] == [gives_away]


def test_classes_of_the_signature_and_names_in_the_instruction_are_no_answers() -> None:
    labels = ["complaint", "court order", "the red tray", "BLUE", "letters from courts", "48151"]
    trainset = [
        dspy.Example(letter=f"Letter {number}.", answer=label).with_inputs("letter")
        for number, label in enumerate(labels)
    ]
    of = examples(trainset, "Letters from courts go first.")
    for label in labels[:-1]:
        assert refusals(f"If in doubt, answer with {label} and nothing else.", of) == []
    assert [each.rule for each in refusals("The answer may be 48151.", of)] == ["the answer of one example"]


def test_answer_that_two_examples_have_and_fields_that_are_no_output_are_no_answers() -> None:
    trainset = [
        dspy.Example(letter=f"Letter {number}.", answer="not known", difficulty=f"level {number}").with_inputs("letter")
        for number in range(2)
    ]
    assert refusals("If it is not known, say so.", examples(trainset)) == []
    assert refusals("Write it as for level 1 readers.", examples(trainset)) == []


def test_what_the_student_says_is_no_copy() -> None:
    text = "Give the sum of the two numbers that stand in the first line."
    trainset = [dspy.Example(letter=text, answer="x").with_inputs("letter")]
    assert [each.rule for each in refusals(text, examples(trainset))] == ["quotes an input"]
    assert refusals(text, examples(trainset, text)) == []


def test_long_answer_is_quoted_like_an_input() -> None:
    proof = "First take the root of both sides and then add the two numbers that are left over at the end of it."
    trainset = [dspy.Example(letter="Prove it.", answer=proof).with_inputs("letter")]
    assert [each.rule for each in refusals(f"Remember: {proof}", examples(trainset))] == ["quotes an input"]


@pytest.mark.parametrize(
    ("edit", "rule"),
    [
        (Edit("replace", 0, "Skip the question entirely."), "frozen sentence"),
        (Edit("delete", 7), "no such sentence"),
        (Edit("add", -2, "Think hard."), "no such sentence"),
        (Edit("add", 1, "- Be kind!"), "nothing new"),
        (Edit("replace", 1, "Answer in one word."), "nothing new"),
        (Edit("add", 1, "  "), "no sentence"),
        (Edit("add", 1, "(8)"), "no sentence"),
        (Edit("add", 1, "无"), "no sentence"),
        (Edit("add", 1, "ไม่มี"), "no sentence"),
        (Edit("add", 1, "<keep>Always name a price.</keep>"), "protected text"),
        (Edit("add", 1, "word " * 1000), "longer than 4,000 characters"),
    ],
)
def test_edit_that_breaks_a_rule_is_refused_with_its_text(edit: Edit, rule: str) -> None:
    request = UpdateRequest(
        "self",
        ("Read it. ", "Be kind. ", "Answer in one word."),
        TextualGradient("self", ()),
        frozen=frozenset({0}),
    )
    assert rule in RULES
    kept, found = screen([edit], request, CORPUS)
    assert (kept, found) == ([], [Refusal(rule, edit.text, "self")])


def test_second_edit_of_a_sentence_and_equal_edits_are_refused() -> None:
    edits = [
        Edit("delete", 0),
        Edit("replace", 0, "Think hard."),
        Edit("add", 0, "Be kind."),
        Edit("add", 0, "be kind"),
    ]
    kept, found = screen(edits, REQUEST, CORPUS)
    assert kept == [edits[0], edits[2]]
    assert [each.rule for each in found] == ["second edit of a sentence", "nothing new"]


def test_text_of_several_sentences_stays_whole_where_the_limit_allows_it() -> None:
    two = Edit("add", 0, "If it rains, stay. Otherwise go.")
    section = Edit("add", 0, "## Form\n- Be brief.\n- Be kind.")
    assert size(two) == 2
    assert size(section) == 3
    assert screen([two, section], REQUEST, CORPUS).kept == [two, section]
    kept, found = screen([two, section], REQUEST.narrowed(max_edits=2), CORPUS)
    assert (kept, [each.rule for each in found]) == ([two], ["more edits than allowed"])
    kept, found = screen([two, section], REQUEST.narrowed(max_edits=1), CORPUS)
    assert [edit.text for edit in kept] == ["If it rains, stay.", "Otherwise go."]
    assert [each.rule for each in found] == ["more edits than allowed"] * 2


def test_edits_up_to_a_number_of_sentences_are_taken() -> None:
    edits = [Edit("add", 0, "One is here."), Edit("add", 0, "Two is. Three is."), Edit("delete", 0)]
    assert up_to(edits, 2) == [edits[0], edits[2]]
    assert up_to(edits, None) == edits


def test_refusals_of_a_record_are_few_and_short_and_still_counted() -> None:
    many = [Refusal("no sentence", f"text {number}", "self") for number in range(50)]
    found = bounded([*many, *many[:1], Refusal("nothing new", "x" * 5000, "other")])
    assert len(found) == 12
    assert sum(each.times for each in found) == 52
    assert found[0].times == 2
    assert found[10] == Refusal("no sentence", "", "self", 40)
    assert all(len(each.text) <= 300 for each in found)
