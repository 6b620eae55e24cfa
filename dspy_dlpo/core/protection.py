"""Text that no update may touch: what the user protects, and the protocols that DSPy keeps inside instructions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from dspy_dlpo.core.sentences import frozen_by, split

_KEEP = re.compile(r"<keep>.*?</keep>", re.DOTALL)


class Protection:
    """Finds the protected spans of each predictor's instruction.

    Three kinds: text between `<keep>` and `</keep>`; what the user names; and, in DSPy's own modules such as `ReAct`
    and `RLM`, everything but the text of the module's signature, since the module relies on it.

    Args:
        protect: Strings, which are taken literally, and compiled patterns.
        protocols: What DSPy's modules wrote, by predictor.
        instructions: The instruction of each predictor that may be optimised.

    Raises:
        ValueError: If something to protect is in none of the instructions, or a `<keep>` is not closed.
    """

    def __init__(
        self,
        protect: Sequence[str | re.Pattern[str]],
        protocols: Mapping[str, Sequence[str]],
        instructions: Mapping[str, str],
    ) -> None:
        named = [re.compile(re.escape(each)) if isinstance(each, str) else each for each in protect]
        for each, pattern in zip(protect, named, strict=True):
            if not any(pattern.search(text) for text in instructions.values()):
                raise ValueError(
                    f"`protect` holds {each!r}, which is in no instruction of the program. Check its spelling."
                )
        for name, text in instructions.items():
            if text.count("<keep>") != len(_KEEP.findall(text)):
                raise ValueError(f"The instruction of {name} has a <keep> without </keep>: {text!r}.")
        self._patterns = {
            name: [_KEEP, *named, *(re.compile(re.escape(part)) for part in protocols.get(name, ()))]
            for name in instructions
        }

    def split(self, predictor: str, text: str) -> tuple[tuple[str, ...], frozenset[int]]:
        """Return the units of an instruction, no protected span cut, and the indices of those it protects."""
        matches = (match.span() for pattern in self._patterns[predictor] for match in pattern.finditer(text))
        spans = [(start, end) for start, end in matches if end > start]
        units = split(text, spans)
        return tuple(units), frozen_by(units, spans)
