"""The forward pass: run a candidate on examples, keep the trace of its predictors, score it with the metric."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import Any

import dspy
from dspy.utils.exceptions import (
    LMAuthError,
    LMBillingError,
    LMConfigurationError,
    LMError,
    LMUnsupportedModelError,
)

from dspy_dlpo.budget import Budget, metered
from dspy_dlpo.data import Data, place
from dspy_dlpo.ledger import Ledger
from dspy_dlpo.records import Candidate, Rollout
from dspy_dlpo.threads import run_in_threads
from dspy_dlpo.trace import Recorder, shorten

FATAL = (LMAuthError, LMBillingError, LMConfigurationError, LMUnsupportedModelError)
"""Errors of a language model that no retry can mend: they end a run."""

_MAX_PROGRAMS = 8
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Metric:
    """A user's metric, in any of DSPy's forms, as `(example, prediction) -> (score, feedback)`.

    Args:
        function: Takes `(example, prediction)`, DSPy's `(example, prediction, trace)` or GEPA's `(gold, pred, trace,
            pred_name, pred_trace)`; a `dspy.Module` whose `forward` does is a metric too. Returns a number, a bool, or
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
        function = self.function.forward if isinstance(self.function, dspy.Module) else self.function
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
        value = self.function(example, prediction, *[None] * (self.num_arguments - 2))
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
                said = _feedback(self.function(example, prediction, whole, name, calls))
            except Exception as problem:  # noqa: BLE001 - The score is there; only a remark on a part is missing.
                _logger.warning("`metric` raised %r when asked about predictor %s.", problem, name)
                continue
            if said and said != feedback:
                words[name] = said
        return words


def _feedback(value: Any) -> str:
    return str(getattr(value, "feedback", None) or "")


class MetricError(ValueError, TypeError):
    """The metric returned something that is no score. It ends a run: every other score would be in doubt too."""


class Forward:
    """Runs candidates on examples and scores them, each pair once: what the ledger holds is not paid again.

    Args:
        student: The program. It is copied for each candidate and never changed.
        metric: The metric.
        examples: All examples, by name.
        ledger: Where every rollout is kept before it is used.
        budget: What is charged for them.
        num_threads: Rollouts in flight at once.
        failure_score: Score of a rollout in which the program or the metric raised.
        max_chars: Characters kept of each field of a trace, error or feedback.
    """

    def __init__(
        self,
        student: dspy.Module,
        metric: Metric,
        examples: Data,
        *,
        ledger: Ledger,
        budget: Budget,
        num_threads: int,
        failure_score: float,
        max_chars: int = 2000,
    ) -> None:
        self._student = student
        self._metric = metric
        self._examples = examples
        self._ledger = ledger
        self._budget = budget
        self._num_threads = num_threads
        self._failure_score = failure_score
        self._max_chars = max_chars
        self._met: dict[tuple[str, str], float] = {}
        self._lost: dict[tuple[str, str], Rollout] = {}
        self._program = lru_cache(maxsize=_MAX_PROGRAMS)(partial(with_instructions, student))

    def __call__(self, pairs: Iterable[tuple[Candidate, str]]) -> list[Rollout]:
        """Return the rollout of each pair of a candidate and an example's name, paying for those not yet paid.

        Raises:
            BudgetSpent: If the budget cannot pay for all of them; then none is run.
            MetricError: If the metric returns something that is no score.
            dspy.LMError: If a language model fails in a way that no retry can mend.
        """
        pairs = list(pairs)
        found: dict[tuple[str, str], Rollout] = {}
        missing: dict[tuple[str, str], Callable[[], tuple[Rollout, bool]]] = {}
        for candidate, example in pairs:
            key = (candidate.id, example)
            if rollout := self._lost.get(key) or self._ledger.rollout(*key):
                found[key] = rollout
            elif key not in missing:
                missing[key] = partial(self._run, self._program(candidate), candidate.id, example)
        # A rollout of the run that this one resumes is charged where the budget first met it.
        known = [rollout for key, rollout in found.items() if key not in self._met]
        self._budget.check(len(missing) + len(known))
        for rollout in known:
            self._budget.charge(rollout.spent)
            self._met[rollout.candidate, rollout.example] = rollout.score
        keys = list(missing)
        for index, (rollout, lost) in run_in_threads(list(missing.values()), self._num_threads):
            if lost:
                self._lost[keys[index]] = rollout
            else:
                self._ledger.add_rollout(rollout)
            self._met[rollout.candidate, rollout.example] = rollout.score
            found[keys[index]] = rollout
        return [found[candidate.id, example] for candidate, example in pairs]

    def scores(self, candidate: Candidate, examples: Sequence[str]) -> list[float]:
        """Return the scores of a candidate on those of the examples on which this run has met it; pays for nothing."""
        return [self._met[candidate.id, name] for name in examples if (candidate.id, name) in self._met]

    def scored(self, candidate: Candidate, examples: Sequence[str]) -> list[float]:
        """Return the scores of a candidate on examples, paying for those not yet paid."""
        return [rollout.score for rollout in self([(candidate, example) for example in examples])]

    def differences(self, candidate: Candidate, other: Candidate, examples: Sequence[str]) -> list[float]:
        """Return the paired differences of score; both sides run at once, and only where they have not yet."""
        rollouts = self([(each, example) for each in (candidate, other) for example in examples])
        mine, its = rollouts[: len(examples)], rollouts[len(examples) :]
        return [one.score - two.score for one, two in zip(mine, its, strict=True)]

    def _run(self, program: dspy.Module, candidate: str, name: str) -> tuple[Rollout, bool]:
        """Return the rollout, and whether it was lost to a failing language model: then the ledger does not keep it."""
        self._budget.check()
        example = self._examples[name]
        recorder = Recorder(program, example.inputs(), self._max_chars)
        traced = name.startswith("train:")  # A validation example teaches nothing, so nobody reads its trace.
        callbacks = [*dspy.settings.callbacks, recorder] if traced else dspy.settings.callbacks
        prediction, feedback, error, lost = None, "", "", False
        predictor_feedback: dict[str, str] = {}
        with metered(self._budget.prices, trace=[], callbacks=callbacks) as meter:
            try:
                prediction = program(**example.inputs())
                score, feedback = self._metric(example, prediction, name)
                if traced and self._metric.num_arguments == 5 and score < self._metric.score_range[1]:
                    predictor_feedback = self._metric.on_predictors(example, prediction, recorder.trace(), feedback)
            except (*FATAL, MetricError):
                raise
            except Exception as problem:  # noqa: BLE001 - Whatever the user's program or metric raises is a failure.
                score, error = self._failure_score, f"{type(problem).__name__}: {problem}"
                lost = isinstance(problem, LMError)
        rollout = Rollout(
            candidate=candidate,
            example=name,
            score=score,
            feedback=shorten(feedback, self._max_chars),
            error=shorten(error, self._max_chars),
            calls=recorder.calls(prediction),
            num_calls=recorder.num_calls,
            predictor_feedback={each: shorten(text, self._max_chars) for each, text in predictor_feedback.items()},
            spent=replace(meter.spent, metric_calls=1),
        )
        self._budget.charge(rollout.spent)  # Here, in the thread, so that its next check sees it.
        return rollout, lost


def with_instructions(student: dspy.Module, candidate: Candidate) -> dspy.Module:
    """Return a copy of the student that has the candidate's instructions."""
    program = student.deepcopy()
    for name, predictor in program.named_predictors():
        if name in candidate.instructions:
            predictor.signature = predictor.signature.with_instructions(candidate.instructions[name])
    return program


def check_first_minibatch(rollouts: Sequence[Rollout]) -> None:
    """Raise if every rollout of a run's first minibatch failed: then it is not the instructions that are wrong.

    Replies that could not be parsed do not count: those an instruction can mend.
    """
    if rollouts and all(rollout.error and "AdapterParseError" not in rollout.error for rollout in rollouts):
        raise RuntimeError(
            f"Program or metric failed on all {len(rollouts)} examples of the first minibatch, which leaves nothing to "
            f"learn from. The first error was: {rollouts[0].error}"
        )
