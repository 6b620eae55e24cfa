"""TLRD: learning-rate decay."""

from __future__ import annotations

import math

from dspy_dlpo.policies.learning_rate import TextualLearningRate
from dspy_dlpo.policies.schedules import Schedule, as_schedule, linear


class TextualLearningRateDecay(TextualLearningRate):
    """Let the bound on a step's edits follow a schedule: explore first, refine later.

    Args:
        schedule: From the run's step index (from 0) to a number of edits, rounded down; below 1 it counts as 1. See
            `dspy_dlpo.schedules` for the usual ones. Default: 5, 4, 3, 2, 1, 1, ...

    Raises:
        TypeError: If it is not callable.
        ValueError: At the step where it returns something that is not a finite number of at least 0.

    Example:
        >>> from dspy_dlpo.core.records import TextualGradient, UpdateRequest
        >>> from dspy_dlpo.policies import StepContext
        >>> request = UpdateRequest("self", ("Answer the question.",), TextualGradient("self", ()))
        >>> policy = TextualLearningRateDecay()
        >>> [policy.narrow(request, {}, StepContext(step, seed=0)).max_edits for step in range(6)]
        [5, 4, 3, 2, 1, 1]

    References:
        Peng et al., DLPO, arXiv 2503.13413; the authors' code is `max(lr - step, 1)`, the default here with lr=5.
    """

    def __init__(self, schedule: Schedule | None = None) -> None:
        schedule = linear(5, 1, 4) if schedule is None else schedule
        if not callable(schedule):
            raise TypeError(f"`schedule` must be a function of the step, but got {schedule!r}. Try schedules.linear.")
        super().__init__(schedule)

    def _cap(self, step: int) -> int:
        value = as_schedule(self.max_edits)(step)
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"`schedule` must return at least 0, but returned {value} at step {step}.")
        return max(int(value + 1e-9), 1)
