"""What `DLPOOptimizer` and `compile` are given, checked before anything is paid for."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dspy

from dspy_dlpo.core.settings import Settings
from dspy_dlpo.descent.critic import Form
from dspy_dlpo.descent.listeners import Listener
from dspy_dlpo.descent.selectors import SELECTORS
from dspy_dlpo.descent.sources import SOURCES
from dspy_dlpo.optimizer.estimate import check_metric_calls, usual_metric_calls
from dspy_dlpo.policies import as_policies
from dspy_dlpo.runtime.budget import Budget, Limits
from dspy_dlpo.runtime.data import Data
from dspy_dlpo.runtime.executor import check_executor
from dspy_dlpo.runtime.metric import Metric
from dspy_dlpo.runtime.prices import Prices
from dspy_dlpo.runtime.program import Student

_BATCH_SIZE = 8
_CRITIC_CHUNK_SIZE = 8
AUTO_STEPS = {"light": 8, "medium": 20, "heavy": 50}

_COUNTS = {
    "num_steps": 1,
    "patience": 1,
    "batch_size": 1,
    "num_candidates": 1,
    "max_trial_examples": 1,
    "num_repeats": 1,
    "critic_chunk_size": 1,
    "max_passing": 0,
    "max_demos": 0,
    "num_threads": 1,
}
"""Integers and the least they may be."""

_OPTIONAL = ("num_steps", "patience", "batch_size", "max_trial_examples", "num_threads", "critic_chunk_size")


def limits_of(arguments: Mapping[str, Any]) -> Limits:
    """Return the limits among an optimiser's arguments."""
    return Limits(**{name: arguments[name] for name in Limits.__dataclass_fields__})


def failure_score_of(arguments: Mapping[str, Any]) -> float:
    """Return the score of an example on which the program or the metric raises: the lowest unless one is given."""
    score, lowest = arguments["failure_score"], arguments["score_range"][0]
    return float(lowest if score is None else score)


def form_of(arguments: Mapping[str, Any], critic_model: dspy.BaseLM, student: Student) -> Form:
    """Return how the critic is asked: one of another model than the program's in batches, unless told otherwise."""
    size, is_own = arguments["critic_chunk_size"], arguments["critic"] is not None
    if size is None:
        is_weak = critic_model.model in {model.model for model in student.models}
        size = 1 if is_weak or is_own else _CRITIC_CHUNK_SIZE
    return Form(size, in_batches=size > 1 and not is_own)


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments of `DLPOOptimizer` that are of the wrong kind or out of their range.

    Raises:
        TypeError: If a metric, model, policy, module or text is something else.
        ValueError: If a number or name is out of its range.
    """
    if "tuning" in arguments:
        raise TypeError(f"`tuning` must be a Tuning, but got {arguments['tuning']!r}. Use tuning=Tuning(...).")
    given = SimpleNamespace(**arguments)
    if given.auto is not None and (limits_of(arguments).given or given.num_steps is not None):
        raise ValueError("`auto` sets the limits itself. Give `auto` or limits, not both.")
    if given.auto is not None and given.auto not in AUTO_STEPS:
        raise ValueError(f"`auto` must be one of {sorted(AUTO_STEPS)}, but got auto={given.auto!r}.")
    limits_of(arguments)
    for name, low in _COUNTS.items():
        value = arguments[name]
        if value is None and name in _OPTIONAL:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise ValueError(f"`{name}` must be an integer of at least {low}, but got {name}={value!r}.")
    _check_scores(given.score_range, given.failure_score)
    if not isinstance(given.seed, int):
        raise TypeError(f"`seed` must be an integer, but got seed={given.seed!r}.")
    if given.timeout is not None and not (_is_number(given.timeout) and given.timeout > 0):
        raise ValueError(f"`timeout` must be seconds above 0, but got timeout={given.timeout!r}. None is no limit.")
    if not (_is_number(given.max_lost_share) and 0 < given.max_lost_share <= 1):
        raise ValueError(f"`max_lost_share` must be in (0, 1], but got max_lost_share={given.max_lost_share!r}.")
    if not (_is_number(given.confidence) and 0.5 < given.confidence < 1):
        raise ValueError(f"`confidence` must be in (0.5, 1), but got confidence={given.confidence!r}. 0.95 is usual.")
    if given.log_dir is not None and not (isinstance(given.log_dir, (str, Path)) and str(given.log_dir)):
        raise ValueError(f"`log_dir` must be a folder, but got log_dir={given.log_dir!r}. None keeps nothing.")
    Metric(given.metric, given.score_range)
    check_executor(given.executor)
    Prices(given.prices)
    as_policies(given.policies)
    for each in given.protect if not isinstance(given.protect, str) else [given.protect]:
        if isinstance(given.protect, str) or not isinstance(each, (str, re.Pattern)) or not each:
            raise TypeError(f"`protect` must be a list of strings and compiled patterns, but got {given.protect!r}.")
    for name in ("prompt_model", "critic_model"):
        if (model := arguments[name]) is not None and not isinstance(model, dspy.BaseLM):
            raise TypeError(f"`{name}` must be a language model, but got {model!r}. Use {name}=dspy.LM(...).")
    for name in ("critic", "proposer"):
        if (module := arguments[name]) is not None and not callable(module):
            raise TypeError(f"`{name}` must be callable, but got {module!r}.")
    listeners = given.listeners
    if not isinstance(listeners, (list, tuple)) or not all(isinstance(each, Listener) for each in listeners):
        raise TypeError(f"`listeners` must be a list of dspy_dlpo.Listener, but got {listeners!r}.")
    if given.sources is not None and (unknown := [each for each in given.sources if each not in SOURCES]):
        raise ValueError(f"`sources` must be among {', '.join(SOURCES)}, but got {', '.join(map(repr, unknown))}.")
    if not callable(given.component_selector) and given.component_selector not in SELECTORS:
        raise ValueError(
            f"`component_selector` must be a callable or one of {sorted(SELECTORS)}, "
            f"but got {given.component_selector!r}."
        )


def _is_number(value: Any) -> bool:
    """Whether a value is a finite number, and not a bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check_scores(score_range: Any, failure_score: float | None) -> None:
    numbers = isinstance(score_range, (list, tuple)) and [*map(_is_number, score_range)]
    if numbers != [True, True] or not score_range[0] < score_range[1]:
        raise ValueError(f"`score_range` must be (lowest, highest), but got score_range={score_range!r}.")
    low, high = score_range
    if failure_score is not None and not (_is_number(failure_score) and low <= failure_score <= high):
        raise ValueError(f"`failure_score` must be in {score_range=}, but got failure_score={failure_score!r}.")


def plan(arguments: Mapping[str, Any], data: Data) -> tuple[Settings, Budget]:
    """Return the numbers and the budget of a run from an optimiser's arguments and its examples.

    Raises:
        ValueError: If `batch_size` exceeds the train examples, or the metric calls do not reach for a run.
    """
    given = SimpleNamespace(**arguments)
    size = len(data.trainset)
    if given.batch_size is not None and given.batch_size > size:
        raise ValueError(
            f"`batch_size` must be at most {size}, the train examples, but got batch_size={given.batch_size}."
        )
    settings = Settings(
        trainset=data.trainset,
        valset=data.valset,
        num_steps=given.num_steps,
        batch_size=given.batch_size or min(_BATCH_SIZE, size),
        num_candidates=given.num_candidates,
        max_trial_examples=given.max_trial_examples,
        max_passing=given.max_passing,
        score_range=(float(given.score_range[0]), float(given.score_range[1])),
        confidence=given.confidence,
        seed=given.seed,
        num_repeats=given.num_repeats,
        patience=given.patience,
        max_demos=given.max_demos,
    )
    limits = limits_of(arguments)
    if given.num_steps is None and not limits.given:
        settings = replace(settings, num_steps=AUTO_STEPS[given.auto or "light"])
        limits = Limits(max_metric_calls=usual_metric_calls(settings))
    check_metric_calls(limits, settings)
    num_threads = given.num_threads or dspy.settings.num_threads
    stop_file = Path(given.log_dir) / "STOP" if given.log_dir else None
    return settings, Budget(limits, Prices(given.prices), num_threads, stop_file)
