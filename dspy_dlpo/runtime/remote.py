"""Rollouts in other processes: what is sent there once, what is sent for each rollout, and what comes back."""

from __future__ import annotations

import hashlib
import pickle
import platform
import signal
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import cloudpickle
import dspy

from dspy_dlpo.core.records import Rollout
from dspy_dlpo.runtime.metering import Meter
from dspy_dlpo.runtime.metric import Metric
from dspy_dlpo.runtime.program import Student
from dspy_dlpo.runtime.rollout import RolloutSettings, Task, abandoned, rollout
from dspy_dlpo.runtime.threads import run_in_threads

_ALWAYS_SENT = 50_000  # Bytes up to which a job goes with each rollout, which saves asking for it.
_MAX_JOBS = 2  # Kept in a worker.
_OF_THIS_PROCESS = ("usage_tracker", "caller_modules", "caller_predict", "trace", "send_stream", "stream_listeners")


class WorkerLost(Exception):
    """The process or machine that ran a rollout is gone; the rollout may be tried elsewhere."""


@dataclass(frozen=True)
class Job:
    """What all rollouts of a run share, ready to be sent.

    Attributes:
        key: Names it.
        content: Program, metric, settings, and DSPy's settings, pickled.
        versions: What must be the same where it is read.
    """

    key: str
    content: bytes
    versions: Mapping[str, str]

    @classmethod
    def of(cls, student: Student, metric: Metric, settings: RolloutSettings) -> Job:
        """Return the job of a program, a metric and settings.

        Raises:
            TypeError: If one of them cannot be pickled. It says which, and what in it.
        """
        dspys = {name: value for name, value in dspy.settings.config.items() if name not in _OF_THIS_PROCESS}
        parts = {"the program": student.original, "`metric`": metric.function, "dspy.settings": dspys}
        for name, part in parts.items():
            if failing := [*_unpicklable(part, name, 3)][-1:]:
                where, error = failing[0]
                raise TypeError(
                    f"With `executor`, program, metric and DSPy's settings are sent to other processes, but {where} "
                    f"cannot be pickled ({error}). Make it where it is used, or leave it out in a `__getstate__`."
                )
        content = cloudpickle.dumps((student, metric, settings, dspys))
        return cls(hashlib.sha256(content).hexdigest(), content, versions())

    @property
    def is_small(self) -> bool:
        """Whether it is sent with each rollout."""
        return len(self.content) <= _ALWAYS_SENT


def _unpicklable(thing: Any, name: str, depth: int) -> Iterator[tuple[str, str]]:
    """Yield what cannot be pickled in a thing, from the thing itself inwards."""
    try:
        cloudpickle.dumps(thing)
    except Exception as error:  # noqa: BLE001 - A user's object may raise anything.
        yield name, f"{type(error).__name__}: {error}"
        parts = thing.items() if isinstance(thing, Mapping) else getattr(thing, "__dict__", {}).items()
        for key, part in parts if depth else ():
            if found := [*_unpicklable(part, f"{name}.{key}", depth - 1)]:
                yield from found
                return


def versions() -> dict[str, str]:
    """Return what must be the same on both sides."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python, "dspy": dspy.__version__, "dspy_dlpo": version("dspy-dlpo")}


@dataclass(frozen=True)
class Reply:
    """What comes back from a worker.

    Attributes:
        rollout: The rollout; None if it raised, or if the worker does not have the job.
        error: What it raised, which ends the run.
        unpriced: Models that were called and have no known price.
    """

    rollout: Rollout | None = None
    error: BaseException | None = None
    unpriced: frozenset[str] = frozenset()


_jobs: OrderedDict[str, tuple[Student, Metric, RolloutSettings, dict[str, Any]]] = OrderedDict()


def run_remotely(key: str, content: bytes | None, wanted: Mapping[str, str], task: Task) -> Reply:
    """Run a task in this worker; the function that an executor is given.

    Args:
        key: Names the job.
        content: The job; None if the worker may have it from an earlier task. If not, the reply is empty.
        wanted: The versions of the sender.
        task: What is to be run.
    """
    if (own := versions()) != wanted:
        other = [f"{name} {own[name]} there, {each} here" for name, each in wanted.items() if own[name] != each]
        return Reply(error=RuntimeError(f"A worker of `executor` has other versions: {'; '.join(other)}."))
    if key not in _jobs:
        if content is None:
            return Reply()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that keeps the books.
        _jobs[key] = pickle.loads(content)
        if len(_jobs) > _MAX_JOBS:
            _jobs.popitem(last=False)
    student, metric, settings, dspys = _jobs[key]
    replies: list[Reply] = []
    meter = Meter(settings.prices)

    def keep(index: int, found: Rollout | None) -> None:
        found = found or abandoned(task, settings, meter)
        replies.append(Reply(found, unpriced=frozenset(settings.prices.unknown)))

    try:
        with dspy.context(**dspys):
            run = partial(rollout, student, task, metric, settings, meter)
            run_in_threads([run], keep, num_threads=1, timeout=settings.timeout)
    except BaseException as error:  # noqa: BLE001 - It is raised where the run is.
        return Reply(error=_sendable(error))
    return replies[0]


def _sendable(error: BaseException) -> BaseException:
    """Return an error that can be pickled: itself if it can."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - An error may hold anything.
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
