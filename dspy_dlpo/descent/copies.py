"""The copy guard: an instruction holds rules, not training examples."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from dspy_dlpo.core.likeness import words
from dspy_dlpo.runtime.data import Data
from dspy_dlpo.runtime.trace import as_text

_SPAN = 8
_MIN_SENTENCE = 2
_MIN_SHAPE = 4
_ANSWER_CHARS = 3
_WORD = re.compile(r"\w+")
_HEADING = re.compile(r"^(\s*\w+:)+")
_SENTENCE_END = re.compile(r"[.!?;:\n]+|\(?\b\w\)")  # Or the letter of an option.
ABOUT_ANSWERS = frozenset(
    _WORD.findall(
        "the a an right correct expected answer output value form label model it is was be been must should have "
        "answered not but instead of"
    )
)


class CopyGuard:
    """Tells whether a sentence copies a train example: part of its input, its answer, or one that only it has.

    Part of an input is a span of 8 words, a shorter sentence or option of at least 2 if that is all but for words with
    a colon before it ("Question: Eve lies."), or a sentence with other names or numbers in it ("Ann says Bob lies."
    where the input has "Eve says Dan lies."). An answer is one if the sentence says nothing else ("The answer must be
    6."), or if no other example has it. Labels among other words, and terms that examples share, are rules, not copies.
    Case, spacing and punctuation do not count. What the student's own instructions say is no copy either.

    Args:
        data: The examples. All train examples are read once, when the first sentence is checked.
        instructions: The student's instructions.
    """

    def __init__(self, data: Data, instructions: Iterable[str]) -> None:
        self._data = data
        self._instructions = " ".join(instructions)
        self._own = " ".join(words(self._instructions))
        self._spans: set[str] | None = None
        self._shapes: set[str] = set()
        self._answers: dict[int, set[str]] = {}
        self._labels: set[frozenset[str]] = set()

    def __call__(self, sentence: str) -> str:
        """Return the rule by which the sentence copies an example, empty if it copies none."""
        if self._spans is None:
            self._read()
        said = words(sentence)
        is_copy = (
            not {" ".join(words(_HEADING.sub("", sentence))), *spans(sentence)}.isdisjoint(self._spans or ())
            or not self._shapes.isdisjoint(_shapes(sentence))
            or frozenset({*said} - ABOUT_ANSWERS) in self._labels
            or any(gram in answers for size, answers in self._answers.items() for gram in _grams(said, size))
        )
        return "copies an example" if is_copy else ""

    def _read(self) -> None:
        self._spans, counts = set(), Counter[str]()
        for name in self._data.trainset:
            example = self._data[name]
            for text in map(as_text, example.inputs().values()):
                self._spans |= spans(text)
                self._shapes |= _shapes(text)
                short = map(words, _SENTENCE_END.split(text))
                self._spans.update(" ".join(each) for each in short if _MIN_SENTENCE <= len(each) < _SPAN)
            counts.update({" ".join(words(as_text(value))) for value in example.labels().values()})
        self._labels = {frozenset({*answer.split()} - ABOUT_ANSWERS) for answer in counts} - {frozenset()}
        for answer, number in counts.items():
            if number == 1 and len(answer) >= _ANSWER_CHARS and answer not in self._own:
                self._answers.setdefault(len(answer.split()), set()).add(answer)
        self._spans -= {span for span in self._spans if span in self._own}
        self._shapes -= _shapes(self._instructions)


def spans(text: str) -> set[str]:
    """Return every 8 words in a row of a text."""
    return {*_grams(words(text), _SPAN)}


def _shapes(text: str) -> set[str]:
    """Return the sentences of at least 4 words without their first word, names and numbers, if 2 words remain.

    A word that does not begin with a small letter is a name or a number.
    """
    shapes = set()
    for sentence in map(_WORD.findall, _SENTENCE_END.split(text)):
        shape = ["*", *(word if word[0].islower() else "*" for word in sentence[1:])]
        if len(shape) >= _MIN_SHAPE and len(shape) - shape.count("*") >= _MIN_SENTENCE:
            shapes.add(" ".join(shape))
    return shapes


def _grams(text: list[str], size: int) -> list[str]:
    return [" ".join(text[start : start + size]) for start in range(len(text) - size + 1)]
