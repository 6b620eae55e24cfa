"""What counts as the same sentence, and what two texts have in common, in any script.

A *token* is a word, in lower case; in scripts that write no spaces it is a single character with its marks. Tokens have
weights, so that one length serves all scripts: 8 words weigh as much as 10 ideographs or 20 Thai letters.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import regex

_MARK = regex.compile(r"\s*(?:[-*+•·・●○–—]|\(?\p{Nd}{1,3}[.)]|\p{Nd}{1,3}[、．])\s+")
_ENDS = ".!。．｡！।۔"
_QUOTES = ('""', "''", "“”", "‘’", "«»", "„“", "「」", "``")
_TOKEN = regex.compile(
    r"[\p{Han}\p{Hiragana}\p{Katakana}]\p{M}*|[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}--\p{M}\p{P}]\p{M}*"
    r"|[[\p{L}\p{N}_]--[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]]"
    r"[[\p{L}\p{N}\p{M}_]--[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]]*",
    regex.V1,
)
_WORD = regex.compile(r"\w+")
_LETTER = regex.compile(r"[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]")
_IDEOGRAPH = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}]")
_MOST_COMPOSED = 5000  # Composing takes time that grows with the square of the marks on one letter.
WORD = 5
"""The weight of a word; an ideograph has 4, a letter of a script such as Thai's 2."""


def normalised(sentence: str) -> str:
    """Return a sentence without what makes no difference to what it says.

    That is white space, the mark of a list item, quotes around the whole, the full stop, and the case of the first
    letter. All else stays: a rule may be about a case, a digit or a sign.

    >>> normalised("- Be brief!") == normalised("be  brief")
    True
    >>> normalised("Answer with YES.") == normalised("Answer with yes.")
    False
    """
    text = " ".join(sentence.split())
    if len(text) <= _MOST_COMPOSED:
        text = unicodedata.normalize("NFC", text)
    if mark := _MARK.match(text):
        text = text[mark.end() :]
    text = _without_stop(text)
    if len(text) > 1 and text[0] + text[-1] in _QUOTES:
        text = _without_stop(text[1:-1].strip())
    return text[:1].lower() + text[1:]


def _without_stop(text: str) -> str:
    """Return a text without the stop directly behind its last word: in "End with !" the sign is what it is about."""
    bare = text.rstrip(_ENDS)
    return bare if bare and not bare[-1].isspace() else text


def same(one: str, other: str) -> bool:
    """Whether two sentences are equal after normalising.

    >>> same("Sort in ascending order.", "Sort in descending order.")
    False
    """
    return normalised(one) == normalised(other)


def tokens(text: str) -> list[str]:
    """Return the tokens of a text.

    >>> tokens("Don't say 東京!")
    ['don', 't', 'say', '東', '京']
    """
    if text.isascii():
        return list(_WORD.findall(text.lower()))
    if len(text) <= _MOST_COMPOSED:
        text = unicodedata.normalize("NFKC", text)
    return list(_TOKEN.findall(text.casefold()))


def weight(token: str) -> int:
    """Return the weight of a token.

    >>> weight("word"), weight("字"), weight("ก")
    (5, 4, 2)
    """
    if token.isascii():
        return WORD
    return 4 if _IDEOGRAPH.match(token) else 2 if _LETTER.match(token) else WORD


def is_ideograph(character: str) -> bool:
    """Whether a character is an ideograph or one of the Japanese syllables."""
    return _IDEOGRAPH.match(character) is not None


def windows(weights: Sequence[int], least: int) -> list[tuple[int, int]]:
    """Return the spans of tokens that weigh at least so much, from each token on the shortest; none shorter.

    >>> windows([5, 5, 4, 4], 10)
    [(0, 2), (1, 4)]
    """
    found, end, total = [], 0, 0
    for start, dropped in enumerate(weights):
        while total < least and end < len(weights):
            total += weights[end]
            end += 1
        if total < least:
            break
        found.append((start, end))
        total -= dropped
    return found


def shares_run(text: str, other: str, least: int) -> bool:
    """Whether a run of tokens of a text that weighs at least so much, or all of them, stands in another text.

    >>> shares_run("Never say what the cat said to the dog.", "What the cat said is unknown.", 4 * WORD)
    True
    >>> shares_run("Say what the cat said.", "The cat is unknown.", 4 * WORD)
    False
    """
    found, line = tokens(text), f" {' '.join(tokens(other))} "
    spans = windows([weight(token) for token in found], least) or [(0, len(found))]
    return any(f" {' '.join(found[slice(*span)])} " in line for span in spans)
