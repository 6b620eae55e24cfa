from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
        ("<rules>\r\n- Be kind.\r\n</rules>\r\nGo.", ["<rules>\r\n", "- Be kind.\r\n", "</rules>\r\n", "Go."]),
        ("[" * 3000, ["[" * 3000]),
        ("[1]\n[2] x\n" + "9" * 5000, ["[1]\n", "[2] x\n" + "9" * 5000]),
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
