"""The forward pass: run a candidate on examples, keep the trace of its predictors, score it with the metric."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial, reduce
from operator import add
from statistics import fmean
from types import MethodType
from typing import Any

import dspy

from dspy_dlpo.core.records import Candidate, Rollout, Spending
from dspy_dlpo.runtime.budget import Budget, Meter, metered
from dspy_dlpo.runtime.data import Data, place
from dspy_dlpo.runtime.faults import FATAL, Faults, is_outside, unbroken
from dspy_dlpo.runtime.ledger import Ledger
from dspy_dlpo.runtime.threads import run_in_threads
from dspy_dlpo.runtime.trace import PredictorNames, Recorder, predictor_names, shorten

_MAX_PROGRAMS = 8
_ROLLOUT_IDS = 1000  # A repeat's own: modules such as `dspy.Refine` count on from the one they are given.
_logger = logging.getLogger(__name__)

_Key = tuple[str, str, int]  # Candidate, example, repeat.


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
        function = self.function
        if isinstance(function, dspy.Module):  # Asked of the class: DSPy warns of `module.forward`.
            function = MethodType(type(function).forward, function)
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

    A rollout is lost if a language model fails on it in a way that says nothing about the candidate (a dropped
    connection, a rate limit that outlasts the retries of the LM), or if it takes longer than `timeout`. It is charged
    and counted; a resumed run tries it again unless later steps built on its loss.

    Args:
        student: The program. It is copied for each candidate and never changed.
        metric: The metric.
        examples: All examples, by name.
        ledger: Where every rollout is kept before it is used.
        budget: What is charged for them.
        num_threads: Rollouts in flight at once.
        failure_score: Score of a rollout in which the program or the metric raised.
        num_repeats: Runs of a candidate on each example. From the second on, each has a `rollout_id` of its own, so
            that DSPy's cache does not answer it with the first.
        timeout: Seconds after which a rollout is abandoned; None for never.
        max_lost_share: See `Faults`.
        max_chars: Characters kept of each field of a trace, error or feedback.

    Attributes:
        lost: Rollouts that were lost.
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
        num_repeats: int = 1,
        timeout: float | None = None,
        max_lost_share: float = 1.0,
        max_chars: int = 2000,
    ) -> None:
        self._student = student
        self._metric = metric
        self._examples = examples
        self._ledger = ledger
        self._budget = budget
        self._num_threads = num_threads
        self._failure_score = failure_score
        self._num_repeats = num_repeats
        self._timeout = timeout
        self._max_chars = max_chars
        self._met: dict[_Key, float] = {}
        self._lost: set[_Key] = set()
        self._meters: dict[_Key, Meter] = {}  # Of the rollouts in flight.
        self._faults = Faults(max_lost_share)
        self._program = lru_cache(maxsize=_MAX_PROGRAMS * num_repeats)(self._build)

    @property
    def lost(self) -> int:
        """How many rollouts were lost."""
        return len(self._lost)

    def __call__(self, pairs: Iterable[tuple[Candidate, str]]) -> list[Rollout]:
        """Return the rollout of each pair of a candidate and an example's name, paying for those not yet paid.

        Of several repeats it has the mean score, and the words and calls of the worst.

        Raises:
            BudgetSpent: If the budget cannot pay for all of them: then none is run; or if it ends on the way.
            MetricError: If the metric returns something that is no score.
            dspy.LMError: If a language model fails in a way that no retry can mend.
            RuntimeError: If too many rollouts were lost.
        """
        pairs = list(pairs)
        self.pay(pairs)
        repeats = ([self._ledger.rollout(*key) for key in self._keys(*pair)] for pair in pairs)
        return [_merged([rollout for rollout in each if rollout]) for each in repeats]

    def pay(self, pairs: Iterable[tuple[Candidate, str]]) -> None:
        """Do what a call does, but return nothing; `score` then knows the scores."""
        known: dict[_Key, Rollout] = {}
        missing: dict[_Key, Callable[[], Rollout]] = {}
        for candidate, example in pairs:
            for key in self._keys(candidate, example):
                if key in self._met or key in self._lost:
                    continue
                if rollout := self._ledger.rollout(*key):  # Of the run that this one resumes.
                    known[key] = rollout
                elif key not in missing:
                    missing[key] = partial(self._run, key, *self._program(candidate, key[2]))
        if not known and not missing:
            return
        self._budget.check(len(known) + len(missing))
        for key, rollout in known.items():
            self._meet(key, rollout)
        keys = list(missing)

        def keep(index: int, rollout: Rollout | None) -> None:
            meter = self._meters.pop(keys[index], None)
            rollout = rollout or self._abandoned(keys[index], meter)
            self._ledger.add_rollout(rollout)
            self._meet(keys[index], rollout)
            self._faults.count(rollout)

        try:
            run_in_threads(list(missing.values()), keep, num_threads=self._num_threads, timeout=self._timeout)
        finally:
            for meter in self._meters.values():  # Left behind on Ctrl-C.
                meter.is_closed = True
            self._meters.clear()

    def score(self, candidate: Candidate, example: str) -> float | None:
        """Return a candidate's mean score on an example, None if this run has not met it or has lost it."""
        met = [self._met[key] for key in self._keys(candidate, example) if key in self._met]
        return fmean(met) if met else None

    def scores(self, candidate: Candidate, examples: Iterable[str]) -> list[float]:
        """Return the scores of a candidate on those of the examples that have one; pays for nothing."""
        return [score for name in examples if (score := self.score(candidate, name)) is not None]

    def scored(self, candidate: Candidate, examples: Sequence[str]) -> list[float]:
        """Return the scores of a candidate on examples, paying for those not yet paid; lost ones are left out."""
        self.pay([(candidate, example) for example in examples])
        return self.scores(candidate, examples)

    def differences(self, candidate: Candidate, other: Candidate, examples: Sequence[str]) -> list[float]:
        """Return the paired differences of score; both sides run at once, and only where they have not yet.

        A pair of which a side is lost is left out.
        """
        self.pay([(each, example) for each in (candidate, other) for example in examples])
        pairs = ((self.score(candidate, name), self.score(other, name)) for name in examples)
        return [mine - its for mine, its in pairs if mine is not None and its is not None]

    def _keys(self, candidate: Candidate, example: str) -> list[_Key]:
        return [(candidate.id, example, repeat) for repeat in range(self._num_repeats)]

    def is_lost(self, candidate: Candidate, example: str) -> bool:
        """Whether this run has lost every rollout of a candidate on an example."""
        return all(key in self._lost for key in self._keys(candidate, example))

    def _meet(self, key: _Key, rollout: Rollout) -> None:
        if rollout.lost:
            self._lost.add(key)
        else:
            self._met[key] = rollout.score
        self._budget.charge(rollout.spent)

    def _abandoned(self, key: _Key, meter: Meter | None) -> Rollout:
        """Return what is kept of a rollout that takes too long: the calls that it has finished are charged."""
        candidate, example, repeat = key
        error = f"abandoned after {self._timeout} seconds"
        if meter:
            meter.is_closed = True
        spent = replace(meter.spent if meter else Spending(), metric_calls=1, seconds=self._timeout or 0.0)
        return Rollout(candidate, example, self._failure_score, error=error, spent=spent, repeat=repeat, lost=True)

    def _build(self, candidate: Candidate, repeat: int) -> tuple[dspy.Module, dspy.BaseLM | None, PredictorNames]:
        """Return the candidate's program, DSPy's default LM for it, and the names of its predictors."""
        program = with_instructions(self._student, candidate)
        return program, set_repeat(program, repeat), predictor_names(program)

    def _run(self, key: _Key, program: dspy.Module, lm: dspy.BaseLM | None, names: PredictorNames) -> Rollout:
        self._budget.check()
        candidate, name, repeat = key
        example = self._examples[name]
        recorder: Recorder | None = None
        traced = name.startswith("train:")  # A validation example teaches nothing, so nobody reads its trace.
        prediction, feedback, error, lost = None, "", "", False
        predictor_feedback: dict[str, str] = {}

        def run() -> Any:
            nonlocal recorder
            if not traced:
                return program(**example.inputs())
            recorder = Recorder(program, names, example.inputs(), self._max_chars)
            with dspy.context(callbacks=[*dspy.settings.callbacks, recorder]):
                return program(**example.inputs())

        with metered(self._budget.prices, trace=[], lm=lm) as meter:
            self._meters[key] = meter
            try:
                prediction = unbroken(run)
                score, feedback = self._metric(example, prediction, name)
                if recorder and self._metric.num_arguments == 5 and score < self._metric.score_range[1]:
                    predictor_feedback = self._metric.on_predictors(example, prediction, recorder.trace(), feedback)
            except (*FATAL, MetricError):
                raise
            except Exception as problem:  # Whatever the user's program or metric raises is a failure of this example.
                causes = [problem, *(recorder.errors if recorder else ())]  # `dspy.Parallel` swallows the first cause.
                if fatal := next((cause for cause in causes if isinstance(cause, FATAL)), None):
                    raise fatal from problem
                score, error = self._failure_score, f"{type(problem).__name__}: {problem}"
                lost = any(map(is_outside, causes))
        return Rollout(
            candidate=candidate,
            example=name,
            score=score,
            feedback=shorten(feedback, self._max_chars),
            error=shorten(error, self._max_chars),
            calls=recorder.calls(prediction) if recorder else (),
            spent=replace(meter.spent, metric_calls=1),
            repeat=repeat,
            lost=lost,
            num_calls=recorder.num_calls if recorder else 0,
            predictor_feedback={each: shorten(text, self._max_chars) for each, text in predictor_feedback.items()},
        )


def _merged(repeats: Sequence[Rollout]) -> Rollout:
    kept = [rollout for rollout in repeats if not rollout.lost] or repeats
    worst = min(kept, key=lambda rollout: rollout.score)
    spent = reduce(add, (rollout.spent for rollout in repeats))
    return replace(worst, score=fmean(rollout.score for rollout in kept), spent=spent)


def set_repeat(program: dspy.Module, repeat: int) -> dspy.BaseLM | None:
    """Let DSPy's cache answer each repeat of a program anew, the first as usual; return DSPy's default LM for it.

    The LMs of its predictors are replaced by copies, those of frozen ones too.
    """
    if repeat:
        for _, predictor in program.named_sub_modules(dspy.Predict):
            predictor.lm = _uncached(predictor.lm, repeat)
    return _uncached(dspy.settings.lm, repeat) if repeat else dspy.settings.lm


def _uncached(lm: dspy.BaseLM | None, repeat: int) -> dspy.BaseLM | None:
    """Return a copy of the LM whose requests DSPy's cache does not answer with those of another repeat."""
    if lm is None or lm.kwargs.get("temperature") == 0:
        return lm
    return lm.copy(rollout_id=repeat * _ROLLOUT_IDS)


def with_instructions(student: dspy.Module, candidate: Candidate) -> dspy.Module:
    """Return a copy of the student that has the candidate's instructions."""
    program = student.deepcopy()
    for name, predictor in program.named_predictors():
        if name in candidate.instructions:
            predictor.signature = predictor.signature.with_instructions(candidate.instructions[name])
    return program
