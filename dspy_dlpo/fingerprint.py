"""What tells two runs apart, as short texts: sources, settings and states, without keys and addresses."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping
from typing import Any


def source(thing: Any) -> str:
    """Return the source text of a function or class, or its name where there is none."""
    try:
        return inspect.getsource(thing)
    except (TypeError, OSError):  # Defined in C, in a notebook that is gone, or an object that is called.
        return getattr(thing, "__qualname__", type(thing).__qualname__)


def attributes(thing: Any) -> list[tuple[str, str]]:
    """Return the settings of a policy, adapter or metric object; what has no text of its own counts by its kind."""
    return [(name, _text(value)) for name, value in sorted(getattr(thing, "__dict__", {}).items())]


def _text(value: Any) -> str:
    if inspect.isfunction(value):  # Such as a schedule, whose numbers are in its closure.
        return source(value) + "".join(_text(cell.cell_contents) for cell in value.__closure__ or ())
    if isinstance(value, (str, int, float, bool, tuple, list, dict, type(None))):
        return repr(value)
    return type(value).__qualname__


def without_lms(state: Any) -> Any:
    """Return the state of a program without its language models, which hold addresses."""
    if isinstance(state, Mapping):
        return {key: without_lms(value) for key, value in state.items() if key != "lm"}
    return state


def harmless(kwargs: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the settings of a language model without keys and addresses."""
    kept = ("temperature", "max_tokens", "max_completion_tokens", "top_p", "seed", "stop")
    return [(name, repr(kwargs[name])) for name in kept if name in kwargs]


def short_hash(text: str) -> str:
    """Return a hash of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
