"""What decides the course of a run, as short texts: a run is resumed only where they are the same."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import platform
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dspy

from dspy_dlpo.data import Data
from dspy_dlpo.policies import Policy, as_policies
from dspy_dlpo.records import Candidate, RunInfo


def fingerprint(
    student: dspy.Module,
    callables: Mapping[str, Any],
    policies: Sequence[Policy],
    models: Sequence[dspy.BaseLM],
    data: Data,
    *,
    settings: tuple[Any, ...],
    seed: int,
) -> dict[str, str]:
    """Return what decides the course of a run, by name.

    Limits, patience, prices and threads are not among it, so that a run can go on with others.
    """
    adapter = dspy.settings.adapter
    lms = [dspy.settings.lm, *models, *(predictor.lm for predictor in student.predictors())]
    return {
        "settings": repr(settings),
        "policies": repr([(type(policy).__name__, _attributes(policy)) for policy in policies]),
        "seed": repr(seed),
        **{name: _hash(_code(each)) for name, each in callables.items()},
        "program": _hash(_code(student)),
        "models": repr([(lm.model, _harmless(lm.kwargs)) if lm else None for lm in lms]),
        "adapter": repr((type(adapter).__name__, _attributes(adapter))) if adapter else "None",
        "data": data.hash(),
        "dspy": dspy.__version__,
    }


def describe(student: dspy.Module, start: Candidate, arguments: Mapping[str, Any], data: Data) -> RunInfo:
    """Return what a run is made with, for those who look at it; `fingerprint` is what a resumed run must share.

    Args:
        student: The program.
        start: Its instructions.
        arguments: The optimiser's arguments by name.
        data: The examples.
    """
    return RunInfo(
        student=start,
        settings={name: _shown(name, value) for name, value in arguments.items()},
        versions={
            "dspy_dlpo": version("dspy-dlpo"),
            "dspy": dspy.__version__,
            "python": platform.python_version(),
        },
        program=_state(student),
        program_name=type(student).__name__,
        num_train=len(data.trainset),
        num_val=len(data.valset),
        held_out=data.held_out,
        num_steps=arguments["num_steps"],
    )


def _shown(name: str, value: Any) -> Any:
    """Return an argument as JSON: a model by its name, a function by its name, a policy by its settings."""
    if name == "policies":
        policies = ((type(policy).__name__, _attributes(policy)) for policy in as_policies(value))
        return [f"{kind}({', '.join(f'{each}={text}' for each, text in own)})" for kind, own in policies]
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    if isinstance(value, Mapping):
        return {str(key): _shown("", each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_shown("", each) for each in value]
    if isinstance(value, dspy.BaseLM):
        return value.model
    if isinstance(value, re.Pattern):
        return value.pattern
    return str(value) if isinstance(value, Path) else getattr(value, "__qualname__", type(value).__qualname__)


def _code(thing: Any) -> str:
    """What a program, a function or another callable does, as far as its source and its settings tell."""
    if isinstance(thing, dspy.Module):
        kinds = sorted({_source(type(module)) for _, module in thing.named_sub_modules()})
        return "".join(kinds) + json.dumps(_state(thing), default=repr)
    if isinstance(thing, functools.partial):
        return _code(thing.func) + _text(thing.args) + _text(thing.keywords)
    if inspect.ismethod(thing):
        return _source(thing.__func__) + _text(_attributes(thing.__self__))
    if thing is None or isinstance(thing, str) or inspect.isfunction(thing):
        return _text(thing)
    return _source(thing if inspect.isroutine(thing) else type(thing)) + _text(_attributes(thing))


def _source(thing: Any) -> str:
    try:
        return inspect.getsource(thing)
    except (TypeError, OSError):  # Defined in C, in a notebook that is gone, or an object that is called.
        return getattr(thing, "__qualname__", type(thing).__qualname__)


def _attributes(thing: Any) -> list[tuple[str, str]]:
    """The settings of a policy, an adapter or a metric object; what has no text of its own counts by its kind."""
    return [(name, _text(value)) for name, value in sorted(getattr(thing, "__dict__", {}).items())]


def _text(value: Any) -> str:
    if inspect.isfunction(value):  # Such as a schedule, whose numbers are in its closure.
        return _source(value) + "".join(_text(cell.cell_contents) for cell in value.__closure__ or ())
    if isinstance(value, functools.partial):
        return _code(value)
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, dict):
        return f"[{', '.join(f'{name!r}: {_text(each)}' for name, each in value.items())}]"
    if isinstance(value, (str, int, float, bool, type(None))):
        return repr(value)
    return type(value).__qualname__


def _state(program: dspy.Module) -> dict[str, Any]:
    """Return the state of a program without its language models: they may have keys, or no state to be saved."""
    program = program.deepcopy()
    for _, predictor in program.named_sub_modules(dspy.Predict):
        predictor.lm = None
    return program.dump_state()  # type: ignore[no-any-return]  # DSPy is untyped.


def _harmless(kwargs: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The settings of a language model without keys and addresses."""
    kept = ("temperature", "max_tokens", "max_completion_tokens", "top_p", "seed", "stop")
    return [(name, repr(kwargs[name])) for name in kept if name in kwargs]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
