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

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Metric:
    """A user's metric, in any of DSPy's forms, as `(example, prediction) -> (score, feedback)`.

    Args:
        function: Takes `(example, prediction)`, DSPy's `(example, prediction, trace)` or GEPA's `(gold, pred, trace,
            pred_name, pred_trace)`; a coroutine function is awaited, and a `dspy.Module` whose `forward` or `aforward`
            does is a metric too. Returns a number, a bool, or
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
        """How many positional arguments the metric is called with: 5, 3 or 2, the most it takes."""
        if not callable(self.function):
            raise TypeError(f"`metric` must be callable, but got {self.function!r}.")
        function = self.function
        if isinstance(function, dspy.Module):  # Asked of the class: DSPy warns of `module.forward`.
            kind = type(function)
            function = MethodType(kind.forward if hasattr(kind, "forward") else kind.aforward, function)
        signature = inspect.signature(function)
        for number in (5, 3, 2):
            try:
                signature.bind(*[None] * number)
                return number
            except TypeError:
                continue
        raise TypeError(
            f"`metric` must take (example, pred), (example, pred, trace) or GEPA's (gold, pred, trace, pred_name, "
            f"pred_trace), but {getattr(function, '__name__', function)} takes {signature}."
        )

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
        score = float(value)
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


def _feedback(value: Any) -> str:
    return str(getattr(value, "feedback", None) or "")


class MetricError(ValueError, TypeError):
    """The metric returned something that is no score. It ends a run: every other score would be in doubt too."""
