from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_dlpo.core.likeness import normalised, same, tokens, weight, windows


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Be brief.", "be  brief"),
        ("- Be brief.", "3. Be brief!"),
        ("“Be brief.”", "Be brief"),
        ("答えは短く。", "・ 答えは短く"),
        ("اكتب بإيجاز", "اكتب بإيجاز."),
        ("संक्षेप में लिखें।", "संक्षेप में लिखें"),
        ("E\u0301cris peu.", "\u00c9cris peu"),
        ("Пиши кратко.", "пиши\nкратко"),
    ],
)
def test_sentences_that_differ_in_form_alone_are_the_same(one: str, other: str) -> None:
    assert same(one, other)
    assert same(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Sort the names in ascending order.", "Sort the names in descending order."),
        ("Write the code in uppercase.", "Write the code in lowercase."),
        ("Write dates as DD/MM/YYYY.", "Write dates as YYYY/MM/DD."),
        ("Give the amount before tax.", "Give the amount after tax."),
        ("Nenne immer den Monat.", "Nenne nie den Monat."),
        ("Toujours répondre en français.", "Ne jamais répondre en français."),
        ("必须写出单位。", "不得写出单位。"),
        ("単位を書くこと。", "単位を書かないこと。"),
        ("Answer with YES.", "Answer with yes."),
        ("Write it in C.", "Write it in C#."),
        ("End with !", "End with ?"),
        ("A) is the best.", "B) is the best."),
        ("Use ０ or １.", "Use 0 or 1."),
        ("Round to 10.", "Round to 100."),
        ("!!", "??"),
    ],
)
def test_opposites_are_never_the_same(one: str, other: str) -> None:
    assert not same(one, other)
    assert not same(other, one)


@given(st.text(max_size=80))
def test_normalising_twice_is_normalising_once_or_less(text: str) -> None:
    assert same(text, f"  {text} ") or not text.strip()
    assert len(normalised(text)) <= 3 * len(text) + 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't say 3.5!", ["don", "t", "say", "3", "5"]),
        ("हिन्दी में लिखें", ["हिन्दी", "में", "लिखें"]),
        ("ไม่มี", ["ไ", "ม่", "มี"]),
        ("ABC한국어 東京で", ["abc한국어", "東", "京", "で"]),
        ("ＡＢ１２", ["ab12"]),
    ],
)
def test_tokens_are_words_or_characters_with_their_marks(text: str, expected: list[str]) -> None:
    assert tokens(text) == expected


def test_words_ideographs_and_letters_have_weights() -> None:
    assert [weight(token) for token in ("word", "слово", "京", "あ", "ม่")] == [5, 5, 4, 4, 2]


@given(st.lists(st.integers(1, 5), max_size=30), st.integers(1, 20))
def test_windows_are_the_shortest_that_weigh_enough(weights: list[int], least: int) -> None:
    for start, end in windows(weights, least):
        assert sum(weights[start:end]) >= least > sum(weights[start : end - 1])
    assert len(windows(weights, least)) == sum(sum(weights[start:]) >= least for start in range(len(weights)))
