"""What `DLPOResult.explain` prints: for each sentence of the chosen instructions, what brought it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dspy_dlpo.core.visible import visible
from dspy_dlpo.descent.origins import Origin
from dspy_dlpo.views.words import plural


@dataclass(frozen=True, repr=False)
class Explanation:
    """Where the sentences of chosen instructions came from; `str` tells it.

    Attributes:
        origins: The sentences of each predictor's instruction, in order.
    """

    origins: Mapping[str, tuple[Origin, ...]]

    def __repr__(self) -> str:
        sentences = ", ".join(f"{name}: {plural(len(each), 'sentence')}" for name, each in self.origins.items())
        return f"Explanation({sentences}; print it to read it)"

    def __str__(self) -> str:
        parts = (
            "\n".join([f"{predictor}:", *(line for origin in origins for line in _told(origin))])
            for predictor, origins in self.origins.items()
        )
        return visible("\n\n".join(parts))  # A model wrote it, and it is printed on a terminal.


def _told(origin: Origin) -> Iterator[str]:
    """Tell of one sentence, in lines; steps are counted from 1, as in a run's messages."""
    yield f"  {' '.join(origin.sentence.split())}"
    if origin.edit is None or origin.step is None:
        yield "    the student's"
    else:
        yield f"    step {origin.step + 1}, {origin.edit.op}: {origin.edit.reason or 'no reason given'}"
    for text in origin.earlier:
        yield f"    in place of: {text}"
    for point in origin.points[:1]:
        examples = ", ".join(point.examples)
        is_said = is_repeated(point.text, origin.sentence)
        yield f"    for {examples}" if is_said else f"    answers: {point.text} ({examples})"
    if origin.removal:
        without, count = origin.removal.difference, origin.removal.num_examples
        yield f"    without it: {without:+.3f} on {count} examples (step {origin.removal.step + 1})"


def is_repeated(complaint: str, sentence: str) -> bool:
    """Whether a complaint only says the sentence that it brought: the critic writes in sentences of an instruction."""
    return re.findall(r"\w+", complaint.casefold()) == re.findall(r"\w+", sentence.casefold())
