"""What decides the course of a run, as short texts: a run is resumed only where they are the same."""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dspy

from dspy_dlpo.core.records import RunInfo
from dspy_dlpo.policies import Policy, as_policies
from dspy_dlpo.runtime.data import Data
from dspy_dlpo.runtime.program import Student
from dspy_dlpo.runtime.source import Source, harmless

HASH = "#"
"""How a text begins that says only whether two things are the same."""


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

    Limits, patience, prices and threads are not among it, so that a run can go on with others. See `Source` for what
    is known of a program, a metric or another callable.
    """
    adapter = dspy.settings.adapter
    lms = [dspy.settings.lm, *models, *(predictor.lm for predictor in student.predictors())]
    return {
        **{name: repr(value) for name, value in settings.items()},
        "seed": repr(seed),
        "policies": ", ".join(_policy(policy) for policy in policies),
        "code of the policies": _hash(Source().text(policies)),
        **{name: _hash(Source().text(each)) for name, each in callables.items()},
        "program": _hash(Source().text(student)),
        "models": ", ".join(dict.fromkeys(lm.model for lm in lms if lm)),
        "settings of the models": _hash(repr([harmless(lm) if lm else None for lm in lms])),
        "adapter": _hash(Source().text(adapter)),
        "data": _hash(*_examples(data)),
        "dspy": dspy.__version__,
    }


def _examples(data: Data) -> Iterator[str]:
    """Yield each example that was given as text, in order."""
    source = Source()
    for kind, examples in (("train", data.given_trainset), ("val", data.given_valset)):
        for example in examples:
            fields = sorted(example.items(), key=lambda item: item[0])
            is_text = all(type(value) is str for _, value in fields)
            yield f"{kind} {sorted(example._input_keys)} {fields if is_text else source.text(fields)}\n"


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
        program=student.state(),
        program_name=student.name,
        num_train=len(data.trainset),
        num_val=len(data.valset),
        held_out=data.held_out,
        num_steps=arguments["num_steps"],
    )


def _shown(name: str, value: Any) -> Any:
    """Return an argument as JSON: a model by its name, a function by its name, a policy by its settings."""
    if name == "policies":
        return [_policy(policy) for policy in as_policies(value)]
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


def _policy(policy: Policy) -> str:
    own = (f"{name}={Source().text(value)}" for name, value in sorted(vars(policy).items()))
    return f"{type(policy).__name__}({', '.join(own)})"


def _hash(*texts: str) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode())
    return HASH + digest.hexdigest()[:16]
