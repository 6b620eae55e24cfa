"""Threads that a program starts itself inherit DSPy's settings from the rollout they belong to.

Python starts a thread in an empty context, so that a language model that is called there would neither be metered nor
traced, nor see what `dspy.context` has set. `asyncio.to_thread` and `dspy.Parallel` pass the context on by themselves.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

_inside: ContextVar[bool] = ContextVar("dspy_dlpo_inside_a_rollout", default=False)
_since: ContextVar[int] = ContextVar("dspy_dlpo_since", default=0)
_batches: WeakKeyDictionary[ThreadPoolExecutor, int] = WeakKeyDictionary()
_PARALLEL = "dspy.utils.parallelizer"
_lock = threading.Lock()
_num_users = 0
_originals: dict[str, Callable[..., Any]] = {}


@contextmanager
def threads_inherit_context() -> Iterator[None]:
    """Within the block, let the threads and thread pool tasks that it starts run in a copy of its context.

    `threading.Thread.start` and `ThreadPoolExecutor.submit` are replaced while any such block runs; for threads that
    are started outside of one they do what they always do.
    """
    global _num_users
    with _lock:
        if not _num_users:
            for owner, name, method in _REPLACED:
                _originals[name] = getattr(owner, name)
                setattr(owner, name, method)
        _num_users += 1
    token = _inside.set(True)
    try:
        yield
    finally:
        _inside.reset(token)
        with _lock:
            _num_users -= 1
            if not _num_users:
                for owner, name, _ in _REPLACED:
                    setattr(owner, name, _originals[name])


def since() -> int:
    """Return when this thread or thread pool task was started, by `time.monotonic_ns`; now if that is not known.

    What ends later cannot be among its inputs. All items of one `dspy.Parallel` count as started with the first.
    """
    return _since.get() or time.monotonic_ns()


def _context(start: int) -> Context:
    context = copy_context()
    context.run(_since.set, start)
    return context


def _start(thread: threading.Thread) -> None:
    if _inside.get():
        thread.run = partial(_context(time.monotonic_ns()).run, thread.run)  # type: ignore[method-assign]  # As a subclass would.
    _originals["start"](thread)


def _submit(pool: ThreadPoolExecutor, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
    if _inside.get():
        start = time.monotonic_ns()
        if function.__module__ == _PARALLEL:
            start = _batches.setdefault(pool, start)
        function = partial(_context(start).run, function)
    future: Future[Any] = _originals["submit"](pool, function, *args, **kwargs)
    return future


_REPLACED: tuple[tuple[type, str, Callable[..., Any]], ...] = (
    (threading.Thread, "start", _start),
    (ThreadPoolExecutor, "submit", _submit),
)
