"""What may be written or sent of a language model's settings, and texts without keys, passwords and addresses' users.

It is a list of what may, not of what may not: the next provider calls its key by another name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import dspy

from dspy_dlpo.core.plain import well_formed

SETTINGS = frozenset(
    {
        "frequency_penalty",
        "logprobs",
        "max_completion_tokens",
        "max_output_tokens",
        "max_tokens",
        "min_p",
        "n",
        "parallel_tool_calls",
        "presence_penalty",
        "reasoning",
        "reasoning_effort",
        "repetition_penalty",
        "response_format",
        "seed",
        "stop",
        "temperature",
        "thinking",
        "top_k",
        "top_logprobs",
        "top_p",
        "verbosity",
    }
)
"""Settings of a language model that decide what it answers and hold nothing secret."""

_HIDDEN = "***"
_LEAST = 6  # Characters of a secret; shorter ones would blot out ordinary words.
_IN_ADDRESS = re.compile(r"(?<=://)[^\s/@:?#]{1,200}(?::[^\s/@?#]{0,200})?(?=@)")
_NAMED = re.compile(
    r"""(?ix) ( (?:api[-_ ]?key|access[-_ ]?key|secret|token|password|passwd|authorization|sig(?:nature)?)
    [\w-]{0,40} ["']? \s* [:=] \s* ["']? (?:bearer\s+|basic\s+)? ) (?!\d+\b) [^\s"'&,;)}\]]{6,}"""
)
_KEY = re.compile(r"\b(?:sk|pk|rk|hf|gsk|xai|AKIA|ASIA|AIza|ghp|glpat)[-_]?[A-Za-z0-9_*.-]{12,}")
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[\w+/=.~-]{8,}")


def settings_of(lm: dspy.BaseLM) -> dict[str, Any]:
    """Return the settings of a language model that may be written, by name."""
    return {name: value for name, value in sorted(lm.kwargs.items()) if name in SETTINGS}


def secrets_of(lms: Iterable[dspy.BaseLM | None]) -> frozenset[str]:
    """Return every text in the other settings of language models: any of them may be a key."""
    found: set[str] = set()
    for lm in lms:
        for name, value in (lm.kwargs if lm else {}).items():
            if name not in SETTINGS:
                found.update(text for text in _texts(value) if len(text) >= _LEAST and not text.isdigit())
    return frozenset(found)


def redacted(text: str, secrets: Iterable[str] = ()) -> str:
    """Return a text, such as that of an exception, without the secrets, and without what looks like one."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, _HIDDEN)
    text = _IN_ADDRESS.sub(_HIDDEN, text)
    text = _NAMED.sub(rf"\1{_HIDDEN}", text)
    text = _BEARER.sub(rf"\1 {_HIDDEN}", text)
    return well_formed(_KEY.sub(_HIDDEN, text))


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for each in value:
            yield from _texts(each)
