"""The user's metric, whatever its form."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MethodType
from typing import Any

import dspy

from dspy_dlpo.runtime.data import place
from dspy_dlpo.runtime.program import call
from dspy_dlpo.runtime.waiting import finish

_TOLERANCE = 1e-5  # Of the width of the score range: sums of decimals and numbers of 32 bits miss a bound by less.
_GEPA = ["pred_name", "pred_trace"]
_logger = logging.getLogger(__name__)


def snapped(score: float, score_range: tuple[float, float]) -> float:
    """Return a score, or the end of the range that it equals but for rounding.

    Every score passes here once it is known, and every mean of scores, so that whoever asks whether one is perfect
    compares exact numbers.

    >>> snapped(0.7 + 0.2 + 0.1, (0.0, 1.0)), snapped(1.0000002, (0.0, 1.0)), snapped(0.999, (0.0, 1.0))
    (1.0, 1.0, 0.999)
    """
    for bound in score_range:
        if abs(score - bound) <= _TOLERANCE * (score_range[1] - score_range[0]):
            return float(bound)
    return score


@dataclass(frozen=True)
class Metric:
    """A user's metric, in any of DSPy's forms, as `(example, prediction) -> (score, feedback)`.

    Args:
        function: Takes `(example, prediction)`, DSPy's `(example, prediction, trace)` or GEPA's `(gold, pred, trace,
            pred_name, pred_trace)`, and options of its own that have defaults; a coroutine function is awaited, and a
            `dspy.Module` whose `forward` or `aforward` does is a metric too. Returns a number, a bool, or
            `dspy.Prediction(score=..., feedback=...)`. It is called with `trace=None`, since some of DSPy's metrics
            return a bool otherwise.
        score_range: Lowest and highest score.

    Raises:
        TypeError: At construction if the function takes another number of arguments.
    """

    function: Callable[..., Any]
    score_range: tuple[float, float]

    def __post_init__(self) -> None:
        self.num_arguments  # noqa: B018 - Computed here so that a wrong metric is refused before the first call.

    @cached_property
    def num_arguments(self) -> int:
        """How many positional arguments the metric is called with: 5, 3 or 2.

        Options of its own, which have names and defaults of their own, keep their defaults.
        """
        if not callable(self.function):
            raise TypeError(f"`metric` must be callable, but got {self.function!r}.")
        function = self.function
        if isinstance(function, dspy.Module):  # Asked of the class: DSPy warns of `module.forward`.
            kind = type(function)
            function = MethodType(kind.forward if hasattr(kind, "forward") else kind.aforward, function)
        try:
            signature: Any = inspect.signature(function)
            number = _num_arguments(signature)
            signature.bind(*[None] * number)
        except (TypeError, ValueError) as error:
            taken = f"takes {signature}" if isinstance(error, TypeError) else "does not say what it takes"
            raise TypeError(
                f"`metric` must take (example, pred), (example, pred, trace) or GEPA's (gold, pred, trace, pred_name, "
                f"pred_trace), but {getattr(function, '__name__', function)} {taken}."
            ) from error
        return number

    def __call__(self, example: dspy.Example, prediction: Any, name: str) -> tuple[float, str]:
        """Score a prediction; `name` is the example's, for error messages.

        Raises:
            TypeError: If the metric returns something that is not a number.
            ValueError: If it returns NaN, an infinity, or a score outside `score_range`.
        """
        value = self._ask(example, prediction, *[None] * (self.num_arguments - 2))
        feedback = _feedback(value)
        if isinstance(value, dspy.Prediction):
            value = value.get("score")
        elif hasattr(value, "score"):
            value = value.score
        if value is None or isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
            raise MetricError(
                f"`metric` returned {value!r} for {place(name)}; it must return a number (higher is better) or "
                "Prediction(score, feedback)."
            )
        try:
            number = value.item() if callable(getattr(value, "item", None)) else value  # Of NumPy, of a tensor.
            score = snapped(float(number), self.score_range)
        except (TypeError, ValueError, RuntimeError) as error:  # An array or tensor of several numbers.
            raise MetricError(
                f"`metric` returned {value!r} for {place(name)}, which is not one number ({error}). Return one number, "
                "such as the mean."
            ) from error
        low, high = self.score_range
        if not (math.isfinite(score) and low <= score <= high):
            raise MetricError(
                f"`metric` returned {score} for {place(name)}, outside score_range={self.score_range}. "
                "Pass the lowest and highest score your metric gives as `score_range`."
            )
        return score, feedback

    def on_predictors(
        self, example: dspy.Example, prediction: Any, trace: Sequence[tuple[str | None, Any]], feedback: str
    ) -> dict[str, str]:
        """Return what a metric of GEPA's form says on each predictor, where it is not the feedback on the whole.

        It is asked with the trace, the predictor's path and the predictor's own calls, as GEPA asks it; the score it
        gives then does not count. These calls run no program and are not counted as metric calls.
        """
        words: dict[str, str] = {}
        whole = [call for _, call in trace]
        for name in dict.fromkeys(name for name, _ in trace if name is not None):
            calls = [call for predictor, call in trace if predictor == name]
            try:
                said = _feedback(self._ask(example, prediction, whole, name, calls))
            except Exception as problem:  # noqa: BLE001 - The score is there; only a remark on a part is missing.
                _logger.warning("`metric` raised %r when asked about predictor %s.", problem, name)
                continue
            if said and said != feedback:
                words[name] = said
        return words

    def _ask(self, *arguments: Any) -> Any:
        if isinstance(self.function, dspy.Module):
            return call(self.function, *arguments)
        return finish(self.function(*arguments))


def _num_arguments(signature: inspect.Signature) -> int:
    parameters = [*signature.parameters.values()]
    named = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    required = sum(each.default is each.empty for each in named)
    if required > 3 or [each.name for each in named[3:5]] == _GEPA:
        return 5
    takes_any = any(each.kind is each.VAR_POSITIONAL for each in parameters)
    if required == 3 or any("trace" in each.name for each in named[2:3]) or (takes_any and len(named) < 3):
        return 3
    return 2


def _feedback(value: Any) -> str:
    return str(getattr(value, "feedback", None) or "")


class MetricError(ValueError, TypeError):
    """The metric returned something that is no score. It ends a run: every other score would be in doubt too."""
