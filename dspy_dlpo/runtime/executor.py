"""Executors: where rollouts run. Ledger, budget and decisions stay in the process that asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, CancelledError
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

from dspy_dlpo.core.records import Rollout
from dspy_dlpo.runtime.faults import GOES_ON
from dspy_dlpo.runtime.metering import Meter
from dspy_dlpo.runtime.metric import Metric
from dspy_dlpo.runtime.program import Student
from dspy_dlpo.runtime.remote import Job, WorkerLost, run_remotely
from dspy_dlpo.runtime.rollout import RolloutSettings, Task, abandoned, rollout
from dspy_dlpo.runtime.threads import run_in_threads

_ATTEMPTS = 3  # At a rollout whose worker dies.
_GRACE = 30.0  # Seconds beyond `timeout` for a worker, which abandons a rollout itself, to say so.


class Executor(Protocol):
    """What `executor` takes: `concurrent.futures` and whatever is like it."""

    def submit(self, function: Callable[..., Any], /, *args: Any) -> Any:
        """Return a future of `function(*args)`, with `result()` and `cancel()`."""


class Runner(Protocol):
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
        """Run tasks; see `Runner`."""
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


class Workers:
    """Runs rollouts in the processes of an executor; a thread of this process waits for each.

    A rollout whose worker dies is tried again elsewhere; when that has happened three times it is lost.

    Args:
        executor: The executor.
        student: The program.
        metric: The metric.
        settings: What holds for all rollouts.
        num_threads: Rollouts in flight at once.

    Raises:
        TypeError: If program, metric or DSPy's settings cannot be pickled.
    """

    def __init__(
        self, executor: Executor, student: Student, metric: Metric, settings: RolloutSettings, num_threads: int
    ) -> None:
        self._executor, self._settings, self._num_threads = executor, settings, num_threads
        self._job = Job.of(student, metric, settings)

    def __call__(self, tasks: Sequence[Task], begin: Callable[[], None], keep: Callable[[int, Rollout], None]) -> None:
        """Run tasks; see `Runner`."""
        futures: dict[int, Any] = {}

        def run(index: int) -> Rollout:
            begin()
            return self._run(index, tasks[index], futures)

        def end(index: int, found: Rollout | None) -> None:
            future = futures.pop(index, None)
            if found is None and future is not None:
                future.cancel()
            keep(index, found or abandoned(tasks[index], self._settings))

        functions = [partial(run, index) for index in range(len(tasks))]
        timeout = None if self._settings.timeout is None else self._settings.timeout + _GRACE
        try:
            run_in_threads(functions, end, num_threads=self._num_threads, timeout=timeout)
        finally:
            for future in [*futures.values()]:  # Left behind on Ctrl-C.
                future.cancel()

    def _run(self, index: int, task: Task, futures: dict[int, Any]) -> Rollout:
        error = ""
        for _ in range(_ATTEMPTS):
            try:
                return self._ask(index, task, futures)
            except WorkerLost as lost:
                error = str(lost)
            except BrokenExecutor as broken:
                raise RuntimeError(f"A worker process of `executor` has died ({broken}). {GOES_ON}") from broken
            except CancelledError as cancelled:
                raise RuntimeError(f"`executor` has cancelled a rollout. {GOES_ON}") from cancelled
        failure = abandoned(task, self._settings)
        return Rollout(**{**vars(failure), "error": f"the worker died {_ATTEMPTS} times: {error}"})

    def _ask(self, index: int, task: Task, futures: dict[int, Any]) -> Rollout:
        contents = [self._job.content] if self._job.is_small else [None, self._job.content]
        for content in contents:
            futures[index] = self._executor.submit(run_remotely, self._job.key, content, self._job.versions, task)
            reply = futures[index].result()
            if reply.error is not None:
                raise reply.error
            if reply.rollout is not None:
                self._settings.prices.unknown.update(reply.unpriced)
                return reply.rollout  # type: ignore[no-any-return]  # What a future returns has no type.
        raise RuntimeError("A worker of `executor` returned no rollout for a job that it was given.")


@contextmanager
def opened(executor: Executor | str | None) -> Iterator[Executor | None]:
    """Return the executor that `DLPOOptimizer` was given; one that is opened here, on Ray, is closed afterwards.

    Raises:
        ImportError: If Ray is asked for and not installed.
    """
    if executor != "ray":
        yield executor  # type: ignore[misc]  # `check_executor` has refused other texts.
        return
    from dspy_dlpo.runtime.cluster import RayExecutor

    with RayExecutor() as own:
        yield own


def check_executor(executor: Any) -> None:
    """Refuse what is no executor.

    Raises:
        TypeError: Says what one is.
    """
    if executor is not None and executor != "ray" and not callable(getattr(executor, "submit", None)):
        raise TypeError(
            f"`executor` must have a method `submit` as concurrent.futures has, or be 'ray', but got {executor!r}. "
            "None runs rollouts in threads."
        )
