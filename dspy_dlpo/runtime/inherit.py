"""Threads that a program starts itself inherit DSPy's settings from the rollout they belong to.

Python starts a thread in an empty context, so that a language model that is called there would neither be metered nor
traced, nor see what `dspy.context` has set. `asyncio.to_thread` and `dspy.Parallel` pass the context on by themselves.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from functools import partial
from typing import Any

_inside: ContextVar[bool] = ContextVar("dspy_dlpo_inside_a_rollout", default=False)
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


def _start(thread: threading.Thread) -> None:
    if _inside.get():
        thread.run = partial(copy_context().run, thread.run)  # type: ignore[method-assign]  # As a subclass would.
    _originals["start"](thread)


def _submit(pool: ThreadPoolExecutor, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
    if _inside.get():
        function = partial(copy_context().run, function)
    future: Future[Any] = _originals["submit"](pool, function, *args, **kwargs)
    return future


_REPLACED: tuple[tuple[type, str, Callable[..., Any]], ...] = (
    (threading.Thread, "start", _start),
    (ThreadPoolExecutor, "submit", _submit),
)
