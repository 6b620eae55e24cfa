from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_dlpo.core.edits import Edit, align, apply, count_edits, growth
from dspy_dlpo.core.sentences import split
from tests.core.test_sentences import TEXTS


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
    ("text", "edits", "expected"),
    [
        ("1. a\n2. b\n3. c", [(2, "d"), (2, "e"), (2, "f")], "1. a\n2. b\n3. c\n4. d\n5. e\n6. f"),
        ("1. a\n2. b\nEnd.", [(0, "c"), (0, "7. d")], "1. a\n2. b\n3. c\n4. d\nEnd."),
        ("(a) x\n(b) y", [(1, "z"), (1, "w")], "(a) x\n(b) y\n(c) z\n(d) w"),
        ("9) a\n10) b", [(1, "c")], "9) a\n10) b\n11) c"),
        ("1. a\n2. b", [(-1, "c")], "1. a\n2. b\n3. c"),
        ("- a\n- b", [(-1, "c")], "- c\n- a\n- b"),
        ("1. a\r\n2. b\r\n", [(1, "c")], "1. a\r\n2. b\r\n3. c"),
        ("One.\r\nTwo.", [(1, "Three."), (1, "Four.")], "One.\r\nTwo.\r\nThree.\r\nFour."),
        ("Do:\n- a", [(1, "## Form\n- b\n- c")], "Do:\n- a\n## Form\n- b\n- c"),
        ("<rules>\n- a\n</rules>", [(1, "b")], "<rules>\n- a\n- b\n</rules>"),
        ("答えは数字です。", [(0, "理由は書かない")], "答えは数字です。\n理由は書かない。"),
        ("उत्तर दें।", [(0, "संक्षेप में लिखें")], "उत्तर दें।\nसंक्षेप में लिखें"),
        ("Run:\n```py\nx = 1\n```", [(1, "Be brief")], "Run:\n```py\nx = 1\n```\nBe brief."),
    ],
)
def test_added_sentences_take_the_form_of_their_place(text: str, edits: list[tuple[int, str]], expected: str) -> None:
    assert apply(split(text), [Edit("add", at, new) for at, new in edits]) == expected


def test_replaced_item_keeps_its_mark_and_the_place_of_a_deleted_last_item_is_taken() -> None:
    units = split("1. a\n2. b\n3. c")
    assert apply(units, [Edit("replace", 1, "B")]) == "1. a\n2. B\n3. c"
    assert apply(units, [Edit("delete", 2), Edit("add", 2, "d")]) == "1. a\n2. b\n3. d"


@given(TEXTS, st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["New one.", "- item", "Neu"])), max_size=4))
def test_parts_of_the_grown_text_are_the_text(text: str, adds: list[tuple[int, str]]) -> None:
    units = split(text)
    edits = [Edit("add", min(at, len(units) - 1), new) for at, new in adds]
    parts = growth(units, edits)
    assert "".join(part for part, _ in parts).rstrip() == apply(units, edits)
    assert [source for _, source in parts if isinstance(source, int)] == list(range(len(units)))


@pytest.mark.parametrize("size", [600, 3000])
def test_long_texts_are_aligned_with_few_edits_in_time(size: int) -> None:
    rng = random.Random(size)
    old = [f"Sentence number {number} says {rng.random()}." for number in range(size)]
    new = list(old)
    for place in rng.sample(range(size), 20):
        new[place] += " Changed."
    assert count_edits(old, new) == 20
    unlike = [f"Other {number}." for number in range(size)]
    assert count_edits(old, unlike) == size
