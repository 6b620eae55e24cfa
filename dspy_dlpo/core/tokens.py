"""Counting tokens."""

from __future__ import annotations

from functools import lru_cache


@lru_cache(maxsize=4096)
def count_tokens(text: str) -> int:
    """Return the length of a text in tokens, as litellm's default tokenizer counts them: near enough for any model."""
    import litellm  # Takes seconds to import, and most runs count no tokens.

    return int(litellm.token_counter(model="", text=text)) if text else 0
