"""Any value as JSON: whatever Python can hold in a text or a record can be written, and read back as plain data."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from pydantic_core import PydanticSerializationError, to_jsonable_python


def well_formed(text: str) -> str:
    r"""Return a text that can be encoded: a lone surrogate, half of a character, becomes its escape.

    >>> well_formed("99: \ud83d what")
    '99: \\ud83d what'
    """
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def jsonable(value: Any) -> Any:
    """Return a value as dicts, lists, texts and numbers; what JSON has no form for becomes the text it prints as.

    `json.dumps` takes the result, whatever the value was. NaN and the infinities stay as they are: `json` reads them.
    """
    if isinstance(value, str):
        return well_formed(str(value))
    if value is None or isinstance(value, (bool, int, float)):
        return _number(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {well_formed(str(_number(key))): jsonable(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(each) for each in value]
    if isinstance(value, (set, frozenset)):
        return sorted((jsonable(each) for each in value), key=json.dumps)
    if callable(getattr(value, "tolist", None)):  # An array or a number of NumPy's, and of what follows its interface.
        return jsonable(value.tolist())
    if callable(getattr(value, "toDict", None)):  # DSPy's examples and predictions.
        return jsonable(value.toDict())
    try:
        return jsonable_leaf(value)
    except (PydanticSerializationError, UnicodeEncodeError, ValueError, RecursionError):
        return well_formed(str(value))


def jsonable_leaf(value: Any) -> Any:
    """Return a single value as pydantic writes it to JSON: dates, enums, decimals, bytes, pydantic's models."""
    plain = to_jsonable_python(value, bytes_mode="base64", inf_nan_mode="constants", fallback=str)
    return plain if plain is None or isinstance(plain, (bool, int, float)) else jsonable(plain)


def _number(value: Any) -> Any:
    """Return a number of Python's own type: of a subclass, such as an enum's, `json` would write something else."""
    for kind in (bool, int, float):
        if isinstance(value, kind):
            return kind(value)
    return value
