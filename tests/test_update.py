from __future__ import annotations

import random
import string
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_dlpo.records import Candidate, Point, TextualGradient, UpdateRequest
from dspy_dlpo.sentences import Edit, count_edits, split
from dspy_dlpo.update import Update, allowed, choose, holds, numbered, parse_edits

SENTENCES = ("Read the question. ", "Think about it. ", "Answer in one word.")


def request(text: str = "".join(SENTENCES), points: tuple[str, ...] = (), **limits: Any) -> UpdateRequest:
    gradient = TextualGradient("self", tuple(Point(point, ("train:0",)) for point in points))
    return UpdateRequest("self", tuple(split(text)), gradient, **limits)


def propose(reply: str | None, asked: UpdateRequest, num_candidates: int = 3) -> Any:
    update = Update(
        lambda questions: [None if reply is None else {"edits": reply}] * len(questions),  # type: ignore[arg-type]
        {"train:0": {"question": "the number of legs of a cat"}},  # type: ignore[arg-type]
        lambda name, text: text,
        num_candidates=num_candidates,
        seed=0,
    )
    return update(Candidate({"self": "".join(asked.sentences)}), [asked], step=0)


@pytest.mark.parametrize(
    ("reply", "edits"),
    [
        ('ADD "Be brief." BECAUSE it rambles', [Edit("add", 2, "Be brief.", "it rambles")]),
        ("add: Be brief.", [Edit("add", 2, "Be brief.")]),
        ('- **ADD** after 1: "Be brief."', [Edit("add", 0, "Be brief.")]),
        ('REPLACE 2 WITH "Think hard." BECAUSE x', [Edit("replace", 1, "Think hard.", "x")]),
        ("2) Replace sentence 2 with: Think hard.", [Edit("replace", 1, "Think hard.")]),
        ("DELETE 3 BECAUSE it is wrong", [Edit("delete", 2, "", "it is wrong")]),
        ("Remove 3", [Edit("delete", 2)]),
        ("Here are my edits:\nDELETE 1\nI hope this helps.", [Edit("delete", 0)]),
        ("REPLACE 2, BECAUSE: no text at all", []),
        ('DELETE 1\nADD "Be brief and do not', [Edit("delete", 0)]),
        ("", []),
    ],
)
def test_edit_lines_are_read_as_models_write_them(reply: str, edits: list[Edit]) -> None:
    assert parse_edits(reply, SENTENCES) == edits


def test_whole_rewrite_is_turned_into_edits() -> None:
    edits = parse_edits("Read the question. Think twice. Answer in one word. Be kind.", SENTENCES)
    assert [(edit.op, edit.at, edit.text) for edit in edits] == [("replace", 1, "Think twice."), ("add", 2, "Be kind.")]


@pytest.mark.parametrize(
    ("edit", "rule"),
    [
        (Edit("replace", 0, "Skip the question entirely."), "frozen sentence"),
        (Edit("delete", 7), "no such sentence"),
        (Edit("add", 2, "Think about it!"), "nothing new"),
        (Edit("add", 2, "  "), "nothing new"),
        (Edit("add", 2, "Give the number of legs of a cat as four."), "quotes an example"),
    ],
)
def test_edit_that_breaks_a_rule_is_dropped_and_counted(edit: Edit, rule: str) -> None:
    dropped: Counter[str] = Counter()
    assert allowed([edit], request(frozen=frozenset({0})), ["the number of legs of a cat"], dropped) == []
    assert dropped == {rule: 1}


def test_added_text_of_three_sentences_counts_as_three_edits() -> None:
    proposals = propose('ADD "Be brief now. Be kind always. Be right, please."', request(max_edits=2), 1)
    (candidate,) = proposals.candidates
    assert candidate.instructions["self"] == "".join(SENTENCES) + "\nBe brief now.\nBe kind always."
    assert proposals.dropped == {"more edits than allowed": 1}


def test_second_candidate_holds_the_sentences_of_the_critic() -> None:
    first, second = propose('ADD "Be brief."', request(points=("Count the letters.",)), 2).candidates
    assert first.instructions["self"].endswith("Be brief.")
    assert second.instructions["self"].endswith("Count the letters.")


def test_reply_that_is_missing_leaves_the_sentences_of_the_critic() -> None:
    (candidate,) = propose(None, request(points=("Count the letters.",))).candidates
    assert candidate.instructions["self"].endswith("Count the letters.")


@given(st.integers(1, 4), st.integers(0, 6), st.integers(0, 6), st.integers(0, 1000))
def test_choices_are_different_and_keep_the_cap(cap: int, proposed: int, own: int, seed: int) -> None:
    pools = [
        [Edit("add", 0, f"{who} {letter}") for letter in string.ascii_letters[:size]]
        for who, size in (("model", proposed), ("critic", own))
    ]
    choices = choose(*pools, cap, 3, random.Random(seed))
    assert len(set(choices)) == len(choices) <= 3
    assert all(1 <= len(choice) <= cap for choice in choices)


LINES = st.one_of(
    st.text(max_size=60),
    st.builds(lambda number, text: f"REPLACE {number} WITH {text}", st.integers(0, 6), st.text(max_size=40)),
    st.builds(lambda number: f"DELETE {number}", st.integers(0, 6)),
    st.builds(lambda text: f'ADD "{text}"', st.text(max_size=80)),
    st.sampled_from(
        ["Lies die Frage. Denk nach.", "Answer in ONE word. Think about it. Read the question.", "word " * 9999]
    ),
)
INSTRUCTIONS = st.sampled_from(
    ["", "One sentence only", "".join(SENTENCES), "# Head\n- a\n- b\n\n```\nx. y\n```\nEnd."]
)


@given(INSTRUCTIONS, st.lists(LINES, max_size=6).map("\n".join), st.integers(1, 3), st.sets(st.integers(0, 3)))
def test_no_reply_breaks_the_cap_or_a_frozen_sentence(text: str, reply: str, cap: int, frozen: set[int]) -> None:
    asked = request(text, max_edits=cap)
    asked = request(text, max_edits=cap, frozen=frozenset(frozen & set(range(len(asked.sentences)))))
    for candidate in propose(reply, asked).candidates:
        result = candidate.instructions["self"]
        assert count_edits(asked.sentences, split(result)) <= cap
        position = 0
        for index in sorted(asked.frozen):
            position = result.index(asked.sentences[index].strip(), position)
        assert holds(result, asked)


def test_sentences_are_numbered_from_one() -> None:
    assert numbered(SENTENCES) == "1. Read the question.\n2. Think about it.\n3. Answer in one word."
    assert numbered(()) == "(empty)"
