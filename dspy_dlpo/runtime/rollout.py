"""A rollout: one run of a candidate on one example, scored. It can be made in any thread, process or machine."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import dspy

from dspy_dlpo.core.plain import well_formed
from dspy_dlpo.core.records import Call, Candidate, Rollout, Spending
from dspy_dlpo.runtime.faults import FATAL, is_outside, is_refusal, retries_of, unbroken
from dspy_dlpo.runtime.inherit import threads_inherit_context
from dspy_dlpo.runtime.metering import Meter, metered
from dspy_dlpo.runtime.metric import Metric, MetricError
from dspy_dlpo.runtime.prices import Prices
from dspy_dlpo.runtime.program import Student, in_one_line
from dspy_dlpo.runtime.secrets import redacted, secrets_of
from dspy_dlpo.runtime.trace import Recorder, shorten

BY_METRIC = "The metric raised "
"""How the error of a rollout begins whose program was fine."""

_LAST_CALLS = 1.0  # Seconds for calls that are under way when the program returns.
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RolloutSettings:
    """What holds for all rollouts of a run.

    Attributes:
        failure_score: Score of a rollout in which the program or the metric raised.
        prices: What calls cost.
        timeout: Seconds after which a rollout is abandoned; None for never.
        max_chars: Characters kept of each field of a trace, error or feedback.
    """

    failure_score: float
    prices: Prices
    timeout: float | None = None
    max_chars: int = 2000


@dataclass(frozen=True)
class Task:
    """What is to be run.

    Attributes:
        candidate: The parameters of the program.
        name: The example's name.
        example: The example.
        repeat: Which of the runs of this candidate on this example it is, from 0.
    """

    candidate: Candidate
    name: str
    example: dspy.Example
    repeat: int = 0


def rollout(
    student: Student, task: Task, metric: Metric, settings: RolloutSettings, meter: Meter | None = None
) -> Rollout:
    """Run a program with the parameters of a candidate on an example, keep the trace of its predictors, score it.

    It depends on its arguments and DSPy's settings alone, and keeps no books.

    Args:
        student: The program.
        task: Candidate and example.
        metric: The metric.
        settings: What holds for all rollouts.
        meter: Counts what it spends. Default: a new one; given by those who may abandon the rollout.

    Returns:
        The rollout. It is lost if a language model failed in a way that says nothing about the candidate.

    Raises:
        MetricError: If the metric returns something that is no score.
        dspy.LMError: If a language model fails in a way that no retry can mend.
    """
    example, max_chars = task.example, settings.max_chars
    copy = student.copy(task.candidate, task.repeat)
    recorder: Recorder | None = None
    traced = task.name.startswith("train:")  # The critic never sees validation examples.
    prediction, feedback, error, lost, refused = None, "", "", False, False
    is_scored = False
    predictor_feedback: dict[str, str] = {}
    secrets = secrets_of([*student.models, copy.lm])

    prompts = _Prompts(copy.instructions)
    counted = meter or Meter(settings.prices)
    counted.watch = prompts.see if traced else None

    def run() -> Any:
        nonlocal recorder
        before = counted.counts()
        if traced:
            recorder = Recorder(copy.program, copy.names, example.inputs(), max_chars)
        with dspy.context(callbacks=[*dspy.settings.callbacks, *([recorder] if recorder else [])]):
            found = copy(**example.inputs())
        if dspy.settings.track_usage and isinstance(found, dspy.Prediction) and found.get_lm_usage() is None:
            found.set_lm_usage(counted.tokens(before))  # DSPy leaves it out where a tracker is at work, as ours is.
        return found

    with metered(settings.prices, counted, trace=[], lm=copy.lm), threads_inherit_context():
        try:
            prediction = unbroken(run, max((retries_of(lm) for lm in student.models), default=0))
            is_scored = True
            score, feedback = metric(example, prediction, task.name)
            if recorder and metric.num_arguments == 5 and score < metric.score_range[1]:
                predictor_feedback = metric.on_predictors(example, prediction, recorder.trace(), feedback)
        except (*FATAL, MetricError):
            raise
        except Exception as problem:  # Whatever the user's program or metric raises is a failure of this example.
            causes = [problem, *(recorder.errors if recorder else ())]  # `dspy.Parallel` swallows the first cause.
            if fatal := next((cause for cause in causes if isinstance(cause, FATAL)), None):
                raise fatal from problem
            score, lost = settings.failure_score, any(map(is_outside, causes))
            refused = not lost and any(map(is_refusal, causes))
            words = f"{type(problem).__name__}: {problem}"
            error = redacted(f"{BY_METRIC if is_scored else ''}{words}", secrets)
            _logger.debug("%s: %s", task.name, error, exc_info=problem)
        if recorder:
            recorder.wait(_LAST_CALLS)
    calls = recorder.calls(prediction) if recorder else ()
    return Rollout(
        candidate=task.candidate.id,
        example=task.name,
        score=score,
        feedback=shorten(well_formed(feedback), max_chars),
        error=shorten(error, max_chars),
        calls=tuple(replace(call, error=redacted(call.error, secrets)) for call in calls),
        spent=replace(counted.spent, metric_calls=1),
        repeat=task.repeat,
        lost=lost,
        refused=refused,
        num_calls=recorder.num_calls if recorder else 0,
        predictor_feedback={each: shorten(well_formed(text), max_chars) for each, text in predictor_feedback.items()},
        strangers=tuple(dict.fromkeys(filter(None, map(copy.stranger, recorder.unnamed() if recorder else ())))),
        unsent=prompts.unsent(calls),
    )


class _Prompts:
    """Notes which instructions stand in the prompts that are sent."""

    def __init__(self, instructions: Mapping[str, str]) -> None:
        self._missing = {name: text for name, text in instructions.items() if text}
        self._any = False

    def see(self, messages: Sequence[Mapping[str, Any]]) -> None:
        """Note the messages of one call."""
        self._any = True
        if not self._missing:
            return
        contents = [message.get("content") for message in messages]
        parts = [part for each in contents for part in ([each] if isinstance(each, str) else each or ())]
        texts = [part if isinstance(part, str) else part.get("text") or "" for part in parts]
        prompt = in_one_line("\n".join(texts))
        for name in [name for name, text in self._missing.items() if text in prompt]:
            self._missing.pop(name, None)

    def unsent(self, calls: Sequence[Call]) -> tuple[str, ...]:
        """Return the predictors among the calls that got an answer though their instruction was not seen."""
        ran = {call.predictor for call in calls if call.outputs}
        return tuple(name for name in self._missing if name in ran) if self._any else ()


def abandoned(task: Task, settings: RolloutSettings, meter: Meter | None = None) -> Rollout:
    """Return what is kept of a rollout that takes too long: the calls that it has finished are charged."""
    if meter:
        meter.is_closed = True
    return Rollout(
        task.candidate.id,
        task.name,
        settings.failure_score,
        error=f"abandoned after {settings.timeout} seconds",
        spent=replace(meter.spent if meter else Spending(), metric_calls=1, seconds=settings.timeout or 0.0),
        repeat=task.repeat,
        lost=True,
    )
