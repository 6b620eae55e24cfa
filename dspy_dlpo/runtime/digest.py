"""A hash of what a value holds: the same in every process, and another one if anything in it is exchanged."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from inspect import isroutine
from typing import Any


def digest(value: Any) -> str:
    """Return a hash of the content of any value: of a text, an image, an array, a table, an object of a user's class.

    The order of mappings and sets does not matter, an address in memory is never part of it, and what cannot be
    copied, such as a lock or a client, counts with its class alone.
    """
    return _digest(value, []).hex()[:24]


def _digest(value: Any, open_: list[int]) -> bytes:
    if value is None or isinstance(value, (bool, int, float, complex)):
        return _hash("number", repr(value).encode())
    if isinstance(value, str):
        return _hash("text", value.encode("utf-8", "surrogatepass"))
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _hash("bytes", bytes(value))
    if isinstance(value, type) or isroutine(value):
        return _hash("code", f"{value.__module__}.{value.__qualname__}".encode())
    if id(value) in open_:
        return _hash("itself")
    open_.append(id(value))
    try:
        return _of_parts(value, open_)
    except RecursionError:
        return _hash(type(value).__qualname__)
    finally:
        open_.pop()


def _of_parts(value: Any, open_: list[int]) -> bytes:
    def each(values: Iterable[Any]) -> list[bytes]:
        return [_digest(part, open_) for part in values]

    if isinstance(value, Mapping):
        return _hash("mapping", *sorted(each(value.items())))
    if isinstance(value, (set, frozenset)):
        return _hash("set", *sorted(each(value)))
    if isinstance(value, (list, tuple)):
        return _hash("list", *each(value))
    try:
        reduced = value.__reduce_ex__(2)
    except Exception:  # noqa: BLE001 - Foreign code; TypeError for what cannot be copied, as for a lock.
        return _hash(type(value).__qualname__)
    if isinstance(reduced, str):
        return _hash(type(value).__qualname__, reduced.encode())
    make, arguments, *rest = reduced
    state, items, pairs = (*rest, None, None, None)[:3]
    return _hash(type(value).__qualname__, *each([make, arguments, state, list(items or ()), list(pairs or ())]))


def _hash(kind: str, *parts: bytes) -> bytes:
    found = hashlib.sha256(f"{kind}:{len(parts)}:".encode())
    for part in parts:
        found.update(part)
    return found.digest()
