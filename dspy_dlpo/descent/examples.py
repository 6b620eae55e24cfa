"""What the train examples say, to be compared with what would enter a prompt: rules belong there, examples do not."""

from __future__ import annotations

import enum
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, Literal, get_args, get_origin

import dspy

from dspy_dlpo.core.likeness import WORD, tokens, weight, windows
from dspy_dlpo.runtime.data import Data
from dspy_dlpo.runtime.trace import as_text

_SPAN = 8 * WORD
_PIECE = 3 * WORD + 1  # Four words. Whatever shares a span with a text shares a whole piece, wherever these are cut.
_MOST_COPIED = 0.75
_LEAST_SENTENCE = 2 * WORD
_LEAST_ANSWER = 3
_LONGEST_ANSWER = 12
_STOP = re.compile(r"(?<=[.!?।؟])\s+|(?<=[。！？])|\n")
_SENTENCE_END = re.compile(r"[.!?;:\n。．｡！？；：…।؟۔]+|\(?\b\w\)")  # Or the letter of an option.


class Examples:
    """The inputs and answers of the train examples, read when the first text is compared with them.

    Answers are the labels that are named like an output of a predictor: other fields are data about the example, such
    as its source or its difficulty. Where no label has such a name, no answer is known.

    Args:
        data: The examples.
        instructions: The student's instructions: what they say is no copy.
        signatures: Of the program's predictors. What a `Literal` or an `Enum` of an output lists is no copy either.

    It takes memory in proportion to the inputs: each is kept once, as its words.
    """

    def __init__(
        self, data: Data | None, instructions: Iterable[str] = (), signatures: Iterable[type[dspy.Signature]] = ()
    ) -> None:
        self._data = data
        self._own = _line(tokens("\n".join(instructions)))
        signatures = list(signatures)
        self._outputs = {name for each in signatures for name in each.output_fields}
        fields = [field for each in signatures for field in each.output_fields.values()]
        self._classes = {_line(tokens(name)) for field in fields for name in _classes(field.annotation)}
        self._sentences: dict[int, set[str]] = {}

    def quoted(self, text: str) -> bool:
        """Whether a text has 8 words in a row of an input, or three quarters of it, 8 words at least, in runs of 4."""
        found = tokens(text)
        weights = [weight(token) for token in found]
        if sum(weights) < _SPAN:
            return False
        pieces = {span: _line(found[slice(*span)]) for span in windows(weights, _PIECE)}
        pieces = {span: piece for span, piece in pieces.items() if piece not in self._own}
        spans = [span for span in windows(weights, _SPAN) if _line(found[slice(*span)]) not in self._own]
        aligned = list(_apart(pieces))
        for line in self._lines:
            hits = [span for span in aligned if pieces[span] in line]
            if not hits:
                continue
            around = [span for span in spans if any(span[0] <= start and end <= span[1] for start, end in hits[:50])]
            if any(_line(found[slice(*span)]) in line for span in around):
                return True
            covered = {place for span, piece in pieces.items() if piece in line for place in range(*span)}
            copied = sum(weights[place] for place in covered)
            if copied >= _SPAN and copied >= _MOST_COPIED * sum(weights):
                return True
        return False

    def is_sentence(self, text: str) -> bool:
        """Whether a text is nothing but whole sentences of one input, of 2 words at least, words with a colon aside."""
        parts = {_line(part) for part in _sentences(text)} - {""}
        parts = {part for part in parts if part not in self._own}
        if not parts:
            return False
        for index, line in enumerate(self._lines):
            if all(part in line for part in parts) and parts <= self._sentences_of(index):
                return True
        return False

    def answer_in(self, text: str) -> bool:
        """Whether a text has an answer that only one example has, and that neither instruction nor signature names."""
        found = tokens(text)
        return any(
            _line(found[start : start + size]) in answers
            for size, answers in self._answers.items()
            for start in range(len(found) - size + 1)
        )

    def gives_away(self, text: str, names: Iterable[str]) -> bool:
        """Whether a sentence has the answer of one of these examples, letter by letter, and of no other train example.

        "The right answer is 'Yes'." is what was learnt of one example; "The answer is Yes or No." is about all.
        """
        own = {answer for name in names for answer in self._answers_to(name)}
        for part in (text, *_STOP.split(text)):  # Also after "No.", which may be an abbreviation elsewhere.
            named = {answer for answer in own if _names(part, answer)}
            if len(named) == 1 and not any(_names(part, answer) for answer in self._all_answers - named):
                return True
        return False

    def _answers_to(self, name: str) -> Iterator[str]:
        """Yield the answers of an example as they are written."""
        for field, value in self._data[name].labels().items() if self._data else ():
            if field in self._outputs and (answer := as_text(value).strip()):
                yield answer

    @cached_property
    def _all_answers(self) -> set[str]:
        return {answer for name in (self._data.trainset if self._data else ()) for answer in self._answers_to(name)}

    @cached_property
    def _inputs(self) -> list[str]:
        return list(
            dict.fromkeys(
                "\n".join(map(as_text, self._data[name].inputs().values()))
                for name in (self._data.trainset if self._data else ())
                if self._data
            )
        )

    @cached_property
    def _lines(self) -> list[str]:
        return [*(_line(tokens(text)) for text in self._inputs), *self._long_answers]

    @cached_property
    def _answers_of_one(self) -> list[list[str]]:
        counts = Counter[str]()
        for name in self._data.trainset if self._data else ():
            labels = self._data[name].labels().items() if self._data else ()
            counts.update({_line(tokens(as_text(value))) for field, value in labels if field in self._outputs})
        return [
            answer.split()
            for answer, number in counts.items()
            if number == 1 and answer not in self._classes and answer not in self._own
        ]

    @cached_property
    def _answers(self) -> dict[int, set[str]]:
        answers: dict[int, set[str]] = {}
        for answer in self._answers_of_one:
            if len(answer) <= _LONGEST_ANSWER and sum(map(_characters, answer)) >= _LEAST_ANSWER:
                answers.setdefault(len(answer), set()).add(_line(answer))
        return answers

    @cached_property
    def _long_answers(self) -> list[str]:
        return [_line(answer) for answer in self._answers_of_one if len(answer) > _LONGEST_ANSWER]

    def _sentences_of(self, index: int) -> set[str]:
        """Return the sentences of an input, as lines of tokens; kept, since the same inputs are asked for again."""
        if index not in self._sentences:
            text = self._inputs[index] if index < len(self._inputs) else ""
            self._sentences[index] = {_line(part) for part in _sentences(text)}
        return self._sentences[index]


def _names(text: str, answer: str) -> bool:
    """Whether a text has an answer as a word or words of its own; in scripts without spaces, anywhere."""
    begin, end = (
        "" if weight(char) < WORD else edge for char, edge in ((answer[0], r"(?<!\w)"), (answer[-1], r"(?!\w)"))
    )
    return answer in text and re.search(f"{begin}{re.escape(answer)}{end}", text) is not None


def _line(found: Sequence[str]) -> str:
    """Return tokens as a text in which whole tokens can be found; empty without any."""
    return f" {' '.join(found)} " if found else ""


def _apart(spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield those of the spans that follow each other without overlap."""
    last = 0
    for start, end in spans:
        if start >= last:
            yield start, end
            last = end


def _sentences(text: str) -> Iterator[list[str]]:
    """Yield the sentences of a text that have two words at least."""
    for part in _SENTENCE_END.split(text):
        found = tokens(part)
        if sum(map(weight, found)) >= _LEAST_SENTENCE:
            yield found


def _characters(token: str) -> float:
    """Return the length of a token; an ideograph says more than a letter."""
    return len(token) if weight(token) == WORD else 1.5


def _classes(annotation: Any) -> Iterator[str]:
    """Yield what a type lists: the values of each `Literal` in it, names and values of each `Enum`."""
    if get_origin(annotation) is Literal:
        yield from map(str, get_args(annotation))
    elif isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        yield from (str(text) for each in annotation for text in (each.name, each.value))
    else:
        for argument in get_args(annotation):
            yield from _classes(argument)
