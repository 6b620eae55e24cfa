"""Deep copies of programs that hold what cannot be copied, such as a lock or a client: that alone is shared.

DSPy copies such a program attribute by attribute, so that a predictor that is reached in two ways, as by a bound method
in a dict, is copied for one of them and stays the original for the other.
"""

from __future__ import annotations

import copy
import functools
from collections import deque
from collections.abc import Iterator
from enum import Enum
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import dspy
from dspy.primitives.base_module import BaseModule

_ATOMIC = (str, bytes, int, float, complex, bool, type(None), type, Enum, FunctionType, BuiltinFunctionType, ModuleType)


class Copier:
    """Copies one program, any number of times.

    Args:
        program: The program.
    """

    def __init__(self, program: dspy.Module) -> None:
        self._program = program
        self._shared: list[Any] = []  # What cannot be copied.
        self._refilled: list[dspy.Module] = []  # Modules whose own way of being copied fails.
        if type(program).deepcopy is BaseModule.deepcopy:
            try:
                copy.deepcopy(program)
            except Exception:  # noqa: BLE001 - A user's object may raise anything.
                self._look_for_what_fails()

    def __call__(self) -> dspy.Module:
        """Return a copy of the program."""
        if type(self._program).deepcopy is not BaseModule.deepcopy:
            return self._program.deepcopy()
        memo = {id(each): each for each in self._shared}
        hollow: dict[int, dspy.Module] = {id(each): object.__new__(type(each)) for each in self._refilled}
        memo |= hollow
        new = copy.deepcopy(self._program, memo)
        for each in self._refilled:
            vars(hollow[id(each)]).update({name: copy.deepcopy(value, memo) for name, value in vars(each).items()})
        return new

    def _look_for_what_fails(self) -> None:
        for thing in _reachable(self._program):
            parts = {id(part): part for part in _parts(thing)}
            try:
                copy.deepcopy(thing, parts)  # Its parts count as copied, so what fails is the thing itself.
            except Exception:  # noqa: BLE001 - A user's object may raise anything.
                (self._refilled if isinstance(thing, dspy.Module) else self._shared).append(thing)


def _reachable(thing: Any) -> Iterator[Any]:
    queue, seen = deque([thing]), {id(thing)}
    while queue:
        yield (current := queue.popleft())
        for part in _parts(current):
            if id(part) not in seen:
                seen.add(id(part))
                queue.append(part)


def _parts(thing: Any) -> list[Any]:
    """Return what a deep copy of a thing copies besides itself, all but what is never copied."""
    parts: list[Any] = []
    if isinstance(thing, dict):
        parts += [*thing.keys(), *thing.values()]
    elif isinstance(thing, (list, tuple, set, frozenset, deque)):
        parts += thing
    elif isinstance(thing, MethodType):
        parts.append(thing.__self__)
    elif isinstance(thing, functools.partial):
        parts += [thing.func, *thing.args, *thing.keywords.values()]
    parts += getattr(thing, "__dict__", {}).values()
    for kind in type(thing).__mro__:
        slots = vars(kind).get("__slots__", ())
        names = (slots,) if isinstance(slots, str) else slots
        parts += [getattr(thing, name) for name in names if hasattr(thing, name)]
    return [part for part in parts if not isinstance(part, _ATOMIC)]
