"""What counts as the same sentence."""

from __future__ import annotations

import re

_ALIKE = 0.75
_NEGATIONS = {"no", "not", "never", "without", "t", "cannot", "unless", "except", "neither", "nor"}
_FILLERS = {"always", "do", "don", "must", "should", "please"}
_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """Return the words of a text, in lower case, without punctuation."""
    return _WORD.findall(text.lower())


def alike(one: str, other: str) -> bool:
    """Whether two sentences say the same: three quarters of their words in common, and the same numbers and negations.

    >>> alike("Write the size in brackets, please.", "Write the size in brackets.")
    True
    >>> alike("Always name the month and the year.", "Never name the month and the year.")
    False
    """
    words = [set(re.findall(r"\w+", text.lower())) for text in (one, other)]
    if any(word in _NEGATIONS or word.isdecimal() for word in words[0] ^ words[1]) or not words[0]:
        return False
    return len(words[0] & words[1]) >= _ALIKE * len(words[0] | words[1])


def opposed(one: str, other: str) -> bool:
    """Whether of two sentences that have three quarters of their other words in common just one is negated.

    >>> opposed("Always name the month.", "Never name the month.")
    True
    >>> opposed("Name the month.", "Name the year.")
    False
    """
    words = [set(re.findall(r"\w+", text.lower())) for text in (one, other)]
    negated = [bool(each & _NEGATIONS) for each in words]
    rest = [each - _NEGATIONS - _FILLERS for each in words]
    return negated[0] != negated[1] and len(rest[0] & rest[1]) >= _ALIKE * len(rest[0] | rest[1]) > 0
