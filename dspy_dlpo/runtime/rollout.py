"""A rollout: one run of a candidate on one example, scored. It can be made in any thread, process or machine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import dspy

from dspy_dlpo.core.records import Candidate, Rollout, Spending
from dspy_dlpo.runtime.faults import FATAL, is_outside, unbroken
from dspy_dlpo.runtime.metering import Meter, metered
from dspy_dlpo.runtime.metric import Metric, MetricError
from dspy_dlpo.runtime.prices import Prices
from dspy_dlpo.runtime.program import Student
from dspy_dlpo.runtime.trace import Recorder, shorten


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
    traced = task.name.startswith("train:")  # A validation example teaches nothing, so nobody reads its trace.
    prediction, feedback, error, lost = None, "", "", False
    predictor_feedback: dict[str, str] = {}

    def run() -> Any:
        nonlocal recorder
        if not traced:
            return copy.program(**example.inputs())
        recorder = Recorder(copy.program, copy.names, example.inputs(), max_chars)
        with dspy.context(callbacks=[*dspy.settings.callbacks, recorder]):
            return copy.program(**example.inputs())

    with metered(settings.prices, meter, trace=[], lm=copy.lm) as meter:
        try:
            prediction = unbroken(run)
            score, feedback = metric(example, prediction, task.name)
            if recorder and metric.num_arguments == 5 and score < metric.score_range[1]:
                predictor_feedback = metric.on_predictors(example, prediction, recorder.trace(), feedback)
        except (*FATAL, MetricError):
            raise
        except Exception as problem:  # Whatever the user's program or metric raises is a failure of this example.
            causes = [problem, *(recorder.errors if recorder else ())]  # `dspy.Parallel` swallows the first cause.
            if fatal := next((cause for cause in causes if isinstance(cause, FATAL)), None):
                raise fatal from problem
            score, error = settings.failure_score, f"{type(problem).__name__}: {problem}"
            lost = any(map(is_outside, causes))
    return Rollout(
        candidate=task.candidate.id,
        example=task.name,
        score=score,
        feedback=shorten(feedback, max_chars),
        error=shorten(error, max_chars),
        calls=recorder.calls(prediction) if recorder else (),
        spent=replace(meter.spent, metric_calls=1),
        repeat=task.repeat,
        lost=lost,
        num_calls=recorder.num_calls if recorder else 0,
        predictor_feedback={each: shorten(text, max_chars) for each, text in predictor_feedback.items()},
    )


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
