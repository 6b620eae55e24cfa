"""What decides the course of a run, as short texts: a run is resumed only where they are the same."""

from __future__ import annotations

import functools
import inspect
import platform
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import FunctionType
from typing import Any

import dspy

from dspy_dlpo.core.plain import jsonable
from dspy_dlpo.core.steps import RunInfo
from dspy_dlpo.policies import Policy, as_policies
from dspy_dlpo.runtime.data import Data
from dspy_dlpo.runtime.digest import digest
from dspy_dlpo.runtime.program import Student, state_of
from dspy_dlpo.runtime.secrets import redacted, settings_of

HASH = "#"
"""How a text begins that says only whether two things are the same."""

CODE = "code of "
"""How the name of a text begins whose change is a warning: code may change without changing what it does."""


def fingerprint(
    student: dspy.Module,
    callables: Mapping[str, Any],
    policies: Sequence[Policy],
    models: Sequence[dspy.BaseLM],
    data: Data,
    *,
    settings: Mapping[str, Any],
    seed: int,
) -> dict[str, str]:
    """Return what decides the course of a run, by name.

    Limits, patience, prices and threads are not among it, so that a run can go on with others. Code is known by its
    name and its source text; of a program's and a metric's object only the state of its predictors counts besides, so
    that a log, a cache or a counter that it keeps while it runs makes no other run.
    """
    lms = [dspy.settings.lm, *models, *(predictor.lm for predictor in student.predictors())]
    parts = [student, *(part for _, part in student.named_sub_modules()), *policies]
    parts += [value for policy in policies for value in vars(policy).values() if callable(value)]  # Schedules.
    return {
        **{name: repr(value) for name, value in settings.items()},
        "seed": repr(seed),
        "policies": ", ".join(map(policy_text, policies)),
        "program": HASH + digest(state_of(student)),
        "models": ", ".join(dict.fromkeys(redacted(lm.model) for lm in lms if lm)),
        "settings of the models": HASH + digest([settings_of(lm) if lm else None for lm in lms]),
        "adapter": _harmless(dspy.settings.adapter),
        "data": HASH + digest([[_example(each) for each in data.given_trainset], _valset(data)]),
        "dspy": dspy.__version__,
        **{name: _identity(value) for name, value in callables.items()},
        **{CODE + name: HASH + digest(source(value)) for name, value in callables.items()},
        **{CODE + _name_of(part): HASH + digest(code) for part in parts if (code := source(part))},
    }


def source(thing: Any) -> list[str]:
    """Return the source text of a function, or of the class of an object and of its bases outside DSPy and ours."""
    while isinstance(thing, functools.partial):
        thing = thing.func
    thing = inspect.unwrap(getattr(thing, "__func__", thing)) if inspect.isroutine(thing) else thing
    if not isinstance(thing, (type, FunctionType)):
        thing = type(thing)
    parts = thing.__mro__ if isinstance(thing, type) else (thing,)
    ours = ("dspy", "dspy_dlpo", "builtins")
    # Code that was run by `exec` may belong to no module.
    return [_text_of(part) for part in parts if (part.__module__ or "").partition(".")[0] not in ours]


def _identity(thing: Any) -> str:
    if isinstance(thing, str):
        return thing
    return _name_of(thing) + (HASH + digest(state_of(thing)) if isinstance(thing, dspy.Module) else "")


def _name_of(thing: Any) -> str:
    while isinstance(thing, functools.partial):
        thing = thing.func
    return str(getattr(thing, "__qualname__", type(thing).__qualname__))


def _text_of(part: type | FunctionType) -> str:
    try:
        return inspect.getsource(part)
    except (OSError, TypeError):  # Written in a console, or compiled.
        return part.__qualname__


def _example(example: dspy.Example) -> tuple[list[str], dict[str, Any]]:
    return sorted(map(str, example._input_keys or ())), dict(example.items())


def _valset(data: Data) -> list[tuple[list[str], dict[str, Any]]]:
    return [_example(each) for each in data.given_valset]


def describe(student: Student, arguments: Mapping[str, Any], data: Data) -> RunInfo:
    """Return what a run is made with, for those who look at it; `fingerprint` is what a resumed run must share.

    Args:
        student: The program.
        arguments: The optimiser's arguments by name.
        data: The examples.
    """
    return RunInfo(
        student=student.start,
        settings={name: _shown(name, value) for name, value in arguments.items()},
        versions={
            "dspy_dlpo": version("dspy-dlpo"),
            "dspy": dspy.__version__,
            "python": platform.python_version(),
        },
        program=jsonable(student.state()),
        program_name=student.name,
        num_train=len(data.trainset),
        num_val=len(data.valset),
        held_out=data.held_out,
        num_steps=arguments["num_steps"],
        models={
            "program": ", ".join(dict.fromkeys(redacted(model.model) for model in student.models)),
            "proposer": _model_of(arguments["prompt_model"]),
            "critic": _model_of(arguments["critic_model"]),
        },
        valset=data.valset,
    )


def _model_of(model: dspy.BaseLM | None) -> str:
    return redacted(model.model) if model else ""


def _shown(name: str, value: Any) -> Any:
    """Return an argument as JSON: a model by its name, a function by its name, a policy by its settings."""
    if name == "policies":
        return [policy_text(policy) for policy in as_policies(value)]
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    if isinstance(value, Mapping):
        return {str(key): _shown("", each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_shown("", each) for each in value]
    if isinstance(value, dspy.BaseLM):
        return redacted(value.model)
    if isinstance(value, re.Pattern):
        return value.pattern
    return str(value) if isinstance(value, Path) else getattr(value, "__qualname__", type(value).__qualname__)


def policy_text(policy: Policy) -> str:
    """Return a policy's class and those of its settings that hold no secret.

    Numbers and functions of numbers, such as schedules, are written out. A text may be anything, a key too: it is
    known by its hash, so that another one is noticed.
    """
    own = (f"{name}={_harmless(value)}" for name, value in sorted(vars(policy).items()))
    return f"{type(policy).__name__}({', '.join(own)})"


def _harmless(value: Any, depth: int = 0) -> str:
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)
    if isinstance(value, str):
        return HASH + digest(value)[:8]
    if depth > 3:
        return "..."
    if isinstance(value, (list, tuple, set, frozenset)):
        texts = [_harmless(each, depth + 1) for each in value]
        return f"[{', '.join(sorted(texts) if isinstance(value, (set, frozenset)) else texts)}]"
    if isinstance(value, FunctionType):
        held = [_harmless(each, depth + 1) for each in (*(value.__defaults__ or ()), *_closure(value))]
        return f"{value.__qualname__.partition('.<locals>')[0]}({', '.join(held)})"
    if isinstance(value, type) or inspect.isroutine(value):
        return str(value.__qualname__)
    own = value.items() if isinstance(value, Mapping) else getattr(value, "__dict__", {}).items()
    held = [f"{name}={_harmless(each, depth + 1)}" for name, each in sorted(own, key=str) if _is_setting(each)]
    return f"{type(value).__qualname__}({', '.join(held)})"


def _is_setting(value: Any) -> bool:
    return isinstance(value, (bool, int, float, FunctionType)) or value is None


def _closure(function: FunctionType) -> list[Any]:
    try:
        return [cell.cell_contents for cell in function.__closure__ or ()]
    except ValueError:  # One is not filled yet.
        return []
