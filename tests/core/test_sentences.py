from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_dlpo.core.edits import Edit, align, apply, count_edits
from dspy_dlpo.core.likeness import alike
from dspy_dlpo.core.sentences import frozen_by, split

PIECES = st.sampled_from(
    [
        *("One. ", "Two, e.g. 3.14. ", "# Head\n", "- item one\n", "  more\n", "1. first\n", "```\ncode. x\n```\n"),
        *('{"a": [1.5]}\n', "<rule>\n", "</rule>\n", "これは文です。", "| a | b |\n", "See https://a.b/c.d now! "),
        *("\n\n", "\t", " ", "half \ud83d. "),
    ]
)
TEXTS = st.one_of(st.text(max_size=200), st.lists(PIECES, max_size=12).map("".join))


@given(TEXTS)
def test_splitting_then_joining_gives_the_text_back(text: str) -> None:
    assert "".join(split(text)) == text


@given(TEXTS)
def test_no_unit_is_blank_unless_the_text_is(text: str) -> None:
    assert all(unit.strip() for unit in split(text)) or not text.strip()


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("Use 3.14, e.g. here. Then stop.", ["Use 3.14, e.g. here. ", "Then stop."]),
        (
            "Follow U.S. law. See https://a.b/c.html?x=1. Go.",
            ["Follow U.S. law. ", "See https://a.b/c.html?x=1. ", "Go."],
        ),
        ("Given the fields `q`,\nproduce `a`.", ["Given the fields `q`,\nproduce `a`."]),
        ("# Rules\n\n- Be brief. Be kind.\n- Stop\n", ["# Rules\n\n", "- Be brief. Be kind.\n", "- Stop\n"]),
        ("- one\n  goes on\n- two", ["- one\n  goes on\n", "- two"]),
        ("Run:\n```py\nx = 1.\n\ny\n```\nDone.", ["Run:\n", "```py\nx = 1.\n\ny\n```\n", "Done."]),
        ('Schema:\n{\n "a": 1\n}\nEnd.', ["Schema:\n", '{\n "a": 1\n}\n', "End."]),
        ("<rules>\nBe kind.\n</rules>", ["<rules>\n", "Be kind.\n", "</rules>"]),
        ("日本語です。これは文です！", ["日本語です。", "これは文です！"]),
        ("Half \ud83d. Then stop \udc00.", ["Half \ud83d. ", "Then stop \udc00."]),
        ("", []),
        (" \n", [" \n"]),
    ],
)
def test_sentences_items_headings_blocks_and_tags_are_units(text: str, units: list[str]) -> None:
    assert split(text) == units


def test_protected_span_is_never_cut() -> None:
    text = "Say hi. <keep>Never lie. Never guess.</keep>\n\nSay bye."
    start, end = text.index("<keep>"), text.index("Say bye")
    units = split(text, [(start, end)])
    assert units == ["Say hi. ", "<keep>Never lie. Never guess.</keep>\n\n", "Say bye."]
    assert frozen_by(units, [(start, end)]) == {1}


@given(TEXTS, TEXTS)
def test_alignment_applied_to_the_old_units_gives_the_new_ones(old: str, new: str) -> None:
    before, after = [[unit.strip() for unit in split(text) if unit.strip()] for text in (old, new)]
    edits = align(before, after)
    state: list[str | None] = list(before)
    behind: dict[int, list[str]] = {}
    for edit in edits:
        if edit.op in ("delete", "move"):
            state[edit.at] = None
        if edit.op == "replace":
            state[edit.at] = edit.text
        if edit.op == "add":
            behind.setdefault(edit.at, []).append(edit.text)
        if edit.op == "move":
            behind.setdefault(edit.to, []).append(before[edit.at])
    result = [*behind.get(-1, [])]
    for index, unit in enumerate(state):
        result += [unit] if unit is not None else []
        result += behind.get(index, [])
    assert sorted(result) == sorted(after)
    if all(edit.op != "move" for edit in edits):
        assert result == after


@given(TEXTS, TEXTS)
def test_edits_are_counted_symmetrically_and_vanish_for_equal_texts(old: str, new: str) -> None:
    one, two = split(old), split(new)
    assert count_edits(one, one) == 0
    assert count_edits(one, two) <= max(len(one), len(two))


@pytest.mark.parametrize(
    ("old", "new", "edits"),
    [
        ("A one. B two. C three.", "A one. B two. C three.", 0),
        ("A one. B two. C three.", "A one. C three.", 1),
        ("A one. B two. C three.", "A one. B changed. C three.", 1),
        ("A one. B two. C three.", "B two. C three. A one.", 1),
        ("A one. B two. C three.", "X. Y. Z.", 3),
    ],
)
def test_moved_unit_counts_once(old: str, new: str, edits: int) -> None:
    assert count_edits(split(old), split(new)) == edits


@pytest.mark.parametrize(
    ("text", "edits", "expected"),
    [
        ("One. Two.", [Edit("add", 1, "Three")], "One. Two.\nThree."),
        ("One. Two.", [Edit("add", 0, "Half.")], "One. Half. Two."),
        ("One. Two.", [Edit("delete", 1)], "One."),
        ("One. Two.", [Edit("replace", 0, "Uno")], "Uno. Two."),
        ("One. Two.", [Edit("move", 0, to=1)], "Two.\nOne."),
        ("Do:\n- a\n- b\nEnd.", [Edit("add", 1, "c")], "Do:\n- a\n- c\n- b\nEnd."),
        ("1. a\n2. b", [Edit("add", 1, "c")], "1. a\n2. b\n3. c"),
        ("", [Edit("add", -1, "Be brief")], "Be brief."),
        ("One.", [Edit("delete", 0)], ""),
    ],
)
def test_edits_are_applied_in_the_look_of_the_text(text: str, edits: list[Edit], expected: str) -> None:
    assert apply(split(text), edits) == expected


@given(TEXTS)
def test_no_edits_leave_every_unit_as_it_was(text: str) -> None:
    assert apply(split(text), []) == text.rstrip()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Write the size in square brackets, please.", "Write the size in square brackets.", True),
        ("When the topic is alpha, answer 11.", "When the topic is beta, answer 22.", False),
        ("Always include the name of the sender.", "Never include the name of the sender.", False),
        ("Flag amounts above 100 euros to us.", "Flag amounts above 500 euros to us.", False),
        ("!!", "??", False),
    ],
)
def test_sentences_are_alike_with_most_words_and_all_numbers_and_negations_in_common(
    one: str, other: str, same: bool
) -> None:
    assert alike(one, other) is alike(other, one) is same
