"""Schedules: functions from the run's step index, from 0, to a value such as a number of edits or a temperature.

Any callable with one integer argument is a schedule. These are the common ones:

    >>> warm = linear(8, 2, 3)
    >>> [warm(step) for step in range(5)]
    [8.0, 6.0, 4.0, 2.0, 2.0]
"""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int], float]


def constant(value: float) -> Schedule:
    """Return the same value at every step.

    Args:
        value: The value.
    """
    return lambda step: value


def linear(start: float, end: float, num_steps: int) -> Schedule:
    """Go from `start` at step 0 to `end` at step `num_steps` in a straight line, and stay there.

    Args:
        start: Value at step 0.
        end: Value at step `num_steps` and after it.
        num_steps: Steps from `start` to `end`, at least 1.

    Raises:
        ValueError: If `num_steps` is below 1.

    References:
        `max(lr - step, 1)` in the code of Peng et al., DLPO, arXiv 2503.13413, is `linear(lr, 1, lr - 1)`.
    """
    _check_num_steps(num_steps)
    return lambda step: start + (end - start) * min(step / num_steps, 1.0)


def cosine(start: float, end: float, num_steps: int) -> Schedule:
    """Go from `start` at step 0 to `end` at step `num_steps` along half a cosine wave, and stay there.

    Args:
        start: Value at step 0.
        end: Value at step `num_steps` and after it.
        num_steps: Steps in between, at least 1.

    Raises:
        ValueError: If `num_steps` is below 1.

    References:
        Loshchilov and Hutter, SGDR, arXiv 1608.03983; without their restarts.
    """
    _check_num_steps(num_steps)
    return lambda step: end + (start - end) * (1 + math.cos(math.pi * min(step / num_steps, 1.0))) / 2


def exponential(start: float, factor: float, end: float = 0.0) -> Schedule:
    """Multiply by `factor` at every step, down to `end`.

    Args:
        start: Value at step 0.
        factor: In (0, 1].
        end: The value never falls below it.

    Raises:
        ValueError: If `factor` is out of its range.
    """
    if not 0 < factor <= 1:
        raise ValueError(f"`factor` must be in (0, 1], but got factor={factor}. 0.5 halves the value at each step.")
    return lambda step: max(start * factor**step, end)


def step(start: float, factor: float, every: int) -> Schedule:
    """Multiply by `factor` after each `every` steps.

    Args:
        start: Value of the first `every` steps.
        factor: In (0, 1].
        every: Steps with the same value, at least 1.

    Raises:
        ValueError: If `factor` or `every` is out of its range.
    """
    _check_num_steps(every, "every")
    stairs = exponential(start, factor)
    return lambda index: stairs(index // every)


def warm_up(schedule: Schedule, num_steps: int) -> Schedule:
    """Climb in a straight line towards `schedule(0)` during the first `num_steps` steps, then follow the schedule.

    Args:
        schedule: What follows, from its own step 0.
        num_steps: Steps of the climb, at least 1. The first has `schedule(0) / (num_steps + 1)`.

    Raises:
        ValueError: If `num_steps` is below 1.
    """
    _check_num_steps(num_steps)

    def warmed_up(step: int) -> float:
        return schedule(0) * (step + 1) / (num_steps + 1) if step < num_steps else schedule(step - num_steps)

    return warmed_up


def as_schedule(value: float | Schedule) -> Schedule:
    """Return a schedule as it is, and a number as a constant schedule."""
    return value if callable(value) else constant(value)


def _check_num_steps(num_steps: int, name: str = "num_steps") -> None:
    if num_steps < 1:
        raise ValueError(f"`{name}` must be at least 1, but got {name}={num_steps}.")
