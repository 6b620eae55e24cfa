"""Text that no update may touch: what the user protects, and the protocols that DSPy keeps inside instructions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import regex

from dspy_dlpo.core.sentences import frozen_by, split

_KEEP = "<keep>", "</keep>"
_MAX_SECONDS = 2.0


class Protection:
    """Finds the protected spans of each predictor's instruction.

    Three kinds: text between `<keep>` and `</keep>`; what the user names; and, in DSPy's own modules such as `ReAct`
    and `RLM`, everything but the text of the module's signature, since the module relies on it.

    Patterns are searched once, in the student's instructions. From then on it is what they found there that is
    protected, to the letter: so no text that a model writes can make a pattern run on and on.

    Args:
        protect: Strings, which are taken literally, and compiled patterns.
        protocols: What DSPy's modules wrote, by predictor.
        instructions: The instruction of each predictor that may be optimised.

    Raises:
        ValueError: If something to protect is in none of the instructions, a pattern takes more than two seconds, or a
            `<keep>` is not closed.
    """

    def __init__(
        self,
        protect: Sequence[str | re.Pattern[str]],
        protocols: Mapping[str, Sequence[str]],
        instructions: Mapping[str, str],
    ) -> None:
        self._texts: dict[str, dict[str, None]] = {}
        found_by: dict[str, dict[int, list[str]]] = {
            name: {index: _found(each, text) for index, each in enumerate(protect)}
            for name, text in instructions.items()
        }
        for index, each in enumerate(protect):
            if not any(found[index] for found in found_by.values()):
                raise ValueError(
                    f"`protect` holds {each!r}, which is in no instruction of the program. Check its spelling."
                )
        for name, text in instructions.items():
            kept = list(_kept(text))
            if text.count(_KEEP[0]) != len(kept):
                raise ValueError(f"The instruction of {name} has a <keep> without </keep>: {text!r}.")
            named = [part for parts in found_by[name].values() for part in parts]
            self._texts[name] = dict.fromkeys([*kept, *named, *(part for part in protocols.get(name, ()) if part)])

    def split(self, predictor: str, text: str) -> tuple[tuple[str, ...], frozenset[int]]:
        """Return the units of an instruction, no protected span cut, and the indices of those it protects."""
        spans = [span for part in self._texts[predictor] for span in _spans(part, text)]
        units = split(text, spans)
        return tuple(units), frozen_by(units, spans)


def _found(protect: str | re.Pattern[str], text: str) -> list[str]:
    """Return what a string or pattern stands for in an instruction."""
    if isinstance(protect, str):
        return [protect] if protect in text else []
    pattern = regex.compile(protect.pattern, _flags(protect))
    try:
        matches = [match.group() for match in pattern.finditer(text, timeout=_MAX_SECONDS)]
    except TimeoutError:
        raise ValueError(
            f"`protect` holds {protect!r}, which takes more than {_MAX_SECONDS:g} s to search. Write it without "
            "repeats inside of repeats."
        ) from None
    return [match for match in dict.fromkeys(matches) if match]


def _flags(pattern: re.Pattern[str]) -> int:
    """Return the flags of a pattern of `re` as those of `regex`, which has other numbers for some."""
    names = [
        name for name in ("ASCII", "IGNORECASE", "MULTILINE", "DOTALL", "VERBOSE") if pattern.flags & re.RegexFlag[name]
    ]
    return sum(getattr(regex, name) for name in names)


def _kept(text: str) -> Iterator[str]:
    """Yield what stands between `<keep>` and `</keep>`, with both."""
    start, end = _KEEP
    position = text.find(start)
    while position >= 0 and (close := text.find(end, position)) >= 0:
        yield text[position : close + len(end)]
        position = text.find(start, close)


def _spans(part: str, text: str) -> Iterator[tuple[int, int]]:
    position = text.find(part)
    while position >= 0:
        yield position, position + len(part)
        position = text.find(part, position + len(part))
