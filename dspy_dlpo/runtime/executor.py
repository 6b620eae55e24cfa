"""Executors: where rollouts run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from dspy_dlpo.core.records import Rollout
from dspy_dlpo.runtime.metering import Meter
from dspy_dlpo.runtime.metric import Metric
from dspy_dlpo.runtime.program import Student
from dspy_dlpo.runtime.rollout import RolloutSettings, Task, abandoned, rollout
from dspy_dlpo.runtime.threads import run_in_threads


class Executor(Protocol):
    """Runs the rollouts of one program with one metric."""

    def __call__(self, tasks: Sequence[Task], begin: Callable[[], None], keep: Callable[[int, Rollout], None]) -> None:
        """Run tasks, in any order, and hand over each rollout as soon as it is there.

        What has begun when something raises is waited for and kept, unless it is Ctrl-C.

        Args:
            tasks: What to run.
            begin: Called before each begins. If it raises, no further task begins.
            keep: Called with the index of a task and its rollout, one call at a time. If it raises, no further task
                begins.

        Raises:
            BaseException: The first that `begin`, a rollout or `keep` raised.
        """


class Threads:
    """Runs rollouts in threads of this process.

    Args:
        student: The program.
        metric: The metric.
        settings: What holds for all rollouts.
        num_threads: Rollouts in flight at once.
    """

    def __init__(self, student: Student, metric: Metric, settings: RolloutSettings, num_threads: int) -> None:
        self._student, self._metric, self._settings, self._num_threads = student, metric, settings, num_threads

    def __call__(self, tasks: Sequence[Task], begin: Callable[[], None], keep: Callable[[int, Rollout], None]) -> None:
        """Run tasks; see `Executor`."""
        meters: dict[int, Meter] = {}

        def run(index: int) -> Rollout:
            begin()
            meters[index] = Meter(self._settings.prices)
            return rollout(self._student, tasks[index], self._metric, self._settings, meters[index])

        def end(index: int, found: Rollout | None) -> None:
            meter = meters.pop(index, None)
            keep(index, found or abandoned(tasks[index], self._settings, meter))

        functions = [partial(run, index) for index in range(len(tasks))]
        try:
            run_in_threads(functions, end, num_threads=self._num_threads, timeout=self._settings.timeout)
        finally:
            for meter in [*meters.values()]:  # Left behind on Ctrl-C.
                meter.is_closed = True
