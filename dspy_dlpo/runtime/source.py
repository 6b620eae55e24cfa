"""What a program, a metric or another callable does, as text: equal texts, equal behaviour, as far as code can tell."""

from __future__ import annotations

import dis
import functools
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from types import CodeType, FunctionType
from typing import Any

import dspy

from dspy_dlpo.runtime.program import state_of

_SCALARS = (str, bytes, int, float, bool, type(None))
_OURS = ("dspy", "dspy_dlpo")
_SECRET = re.compile(r"key|secret|credential|password|header|base|url|(?<!max_)(?<!completion_)token")


class Source:
    """Writes values as text, each function and class once.

    A function is its source, its closure, and the functions, classes and constants of the same project that it names;
    an object is its class and its settings; a module also its state; a language model its name and settings. What the
    code itself assigns while it runs, such as a counter, is left out. Code of installed packages is known by its name
    only, and so is an object of theirs without a text of its own. So a helper that is reached in another way, such as a
    function of an imported module, can change unnoticed.
    """

    def __init__(self) -> None:
        self._written: set[FunctionType | type] = set()
        self._open: list[Any] = []

    def text(self, value: Any) -> str:
        """Return the text of anything; sets are sorted, and no address in memory is in it."""
        if isinstance(value, _SCALARS):
            return repr(value)
        if any(value is each for each in self._open):
            return "..."
        self._open.append(value)
        try:
            return self._text(value)
        finally:
            self._open.pop()

    def _text(self, value: Any) -> str:
        if isinstance(value, Mapping):
            return f"{{{', '.join(f'{self.text(key)}: {self.text(each)}' for key, each in value.items())}}}"
        if isinstance(value, (list, tuple)):
            return f"[{', '.join(map(self.text, value))}]"
        if isinstance(value, (set, frozenset)):
            return f"{{{', '.join(sorted(map(self.text, value)))}}}"
        if isinstance(value, dspy.BaseLM):
            return f"{value.model}({harmless(value)})"
        if isinstance(value, dspy.Tool):
            return self.text(value.func)
        if isinstance(value, functools.partial):
            return self.text([value.func, value.args, value.keywords])
        if inspect.ismethod(value):
            return f"{self.text(value.__self__)}.{value.__name__}"
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, dspy.Module):
            is_part = any(isinstance(each, dspy.Module) for each in self._open[:-1])  # It is among the sub-modules.
            return _name(type(value)) if is_part else self._module(value)
        if inspect.isroutine(value):
            inner = inspect.unwrap(value)  # Of `functools.cache`, say.
            return _name(value) if inner is value else self.text(inner)
        has_text: bool = type(value).__repr__ is not object.__repr__  # type: ignore[comparison-overlap]  # Any type.
        if has_text and not callable(value) and " at 0x" not in (said := repr(value)):
            return self._class(type(value)) + said
        if _is_installed(type(value)) and _root(value) not in _OURS:  # A client, say, whose state is its own affair.
            return _name(type(value))
        return self._class(type(value)) + self._settings(value)

    def _function(self, function: FunctionType) -> str:
        if function in self._written:
            return _name(function)
        self._written.add(function)
        code, assigned = function.__code__, _assigned(function)
        cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
        held = {name: _content(cell) for name, cell in cells if name not in assigned}
        if _is_installed(function):
            return _name(function) + self.text(held)
        return _code(function) + self.text([held, function.__defaults__, function.__kwdefaults__, _named(function)])

    def _class(self, kind: type) -> str:
        if kind in self._written or _is_installed(kind):
            return _name(kind)
        self._written.add(kind)
        return _code(kind) + self.text([*kind.__bases__, *(value for each in _methods(kind) for value in _named(each))])

    def _module(self, module: dspy.Module) -> str:
        texts = [self.text(state_of(module))]
        for name, part in module.named_sub_modules():
            is_predict = isinstance(part, dspy.Predict)
            texts.append(
                f"{name} {self._class(type(part))} {self.text(part.lm) if is_predict else self._settings(part)}"
            )
        return "\n".join(texts)

    def _settings(self, thing: Any) -> str:
        """Return the attributes of an object, but those that its methods assign or DSPy keeps there."""
        methods = [each for kind in type(thing).__mro__ for each in _methods(kind) if each.__name__ != "__init__"]
        left_out = {name for each in methods for name in _assigned(each)}
        if isinstance(thing, dspy.Module):
            left_out |= {"history", "callbacks", "_compiled"}
        own = getattr(thing, "__dict__", {})
        return self.text({name: own[name] for name in sorted(own) if name not in left_out})


def harmless(lm: dspy.BaseLM) -> list[tuple[str, str]]:
    """Return the settings of a language model, without keys and addresses."""
    return [(name, Source().text(value)) for name, value in sorted(lm.kwargs.items()) if not _SECRET.search(name)]


def _methods(kind: type) -> list[FunctionType]:
    return [value for value in vars(kind).values() if isinstance(value, FunctionType)]


def _assigned(function: FunctionType) -> set[str]:
    """Return the globals, variables of an outer function, and attributes that a function assigns."""
    steps = (step for code in _codes(function.__code__) for step in dis.get_instructions(code))
    return {step.argval for step in steps if step.opname in ("STORE_GLOBAL", "STORE_DEREF", "STORE_ATTR")}


def _named(function: FunctionType) -> list[Any]:
    """Return the code and the constants among the globals that a function names; a list, say, may be a log."""
    names = {name for code in _codes(function.__code__) for name in code.co_names} - _assigned(function)
    known = function.__globals__
    return [known[name] for name in sorted(names) if name in known and _is_part(known[name])]


def _is_part(value: Any) -> bool:
    value = getattr(value, "__wrapped__", value)
    return isinstance(value, (FunctionType, type, re.Pattern, *_SCALARS)) or (
        isinstance(value, (tuple, frozenset)) and all(map(_is_part, value))
    )


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Yield the code of a function and of the functions inside it."""
    yield code
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _codes(inner)


def _is_installed(thing: Any) -> bool:
    """Whether code belongs to Python or to an installed package, whose name says enough."""
    root = _root(thing)
    if root == "__main__":  # In a notebook its file is that of an installed package.
        return False
    path = getattr(sys.modules.get(root), "__file__", None) or ""
    return root in {*sys.stdlib_module_names, *_OURS} or "-packages" in path


def _root(thing: Any) -> str:
    return str(getattr(thing, "__module__", None) or "builtins").partition(".")[0]


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # Not filled yet.
        return None


def _code(thing: Any) -> str:
    try:
        return inspect.getsource(getattr(thing, "__code__", thing))  # Of a wrapper itself, not of what it wraps.
    except (TypeError, OSError):  # Written in a console, or in a notebook that is gone.
        return _name(thing)


def _name(thing: Any) -> str:
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', type(thing).__qualname__)}"
