"""How much text a language model can be shown."""

from __future__ import annotations

import dspy

from dspy_dlpo.runtime.prices import FREE, entry_of

_UNKNOWN = 16_000  # Tokens of context; nearly every model that is served today has more.
_LOCAL = 8_000
_MOST = 100_000
_CHARS_PER_TOKEN = 3  # English has more than four, many other languages fewer.
_FIELDS = 4  # The instruction, and three more.


def room_for_a_field(lm: dspy.BaseLM | None) -> int:
    """Return how many characters one field of a question to a model may have, apart from the instruction.

    It is a quarter of the context that litellm's table gives for the model, at most 100,000 characters, and that of
    16,000 tokens where the table does not have it. The instruction is never shortened.
    """
    name = str(getattr(lm, "model", ""))
    tokens = _LOCAL if name.startswith(FREE) else _context(name) or _UNKNOWN
    return min(tokens * _CHARS_PER_TOKEN // _FIELDS, _MOST)


def _context(model: str) -> int | None:
    tokens = entry_of(model).get("max_input_tokens")
    return tokens if isinstance(tokens, int) and tokens > 0 else None
