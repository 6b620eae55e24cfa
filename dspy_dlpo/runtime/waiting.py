"""Running what is asynchronous from threads: one event loop for all of it, as in an application."""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
from collections.abc import Awaitable
from contextvars import Context
from typing import Any

_lock = threading.Lock()
_loops: dict[int, asyncio.AbstractEventLoop] = {}  # By process: a forked one has no thread that runs it.


class AsyncEngine:
    """The `async_engine` of a `dspy.LM`: asks its `engine` in a thread.

    Args:
        engine: The engine.
    """

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    async def complete(self, request: Any) -> Any:
        """Answer one request."""
        return await asyncio.to_thread(self.engine.complete, request)

    def __deepcopy__(self, memo: dict[int, Any]) -> AsyncEngine:
        return self


def finish(value: Any) -> Any:
    """Return a value; one that must be awaited is awaited, in the context of this thread.

    All is awaited in one event loop, which a thread of its own runs for as long as the process lives: a client that a
    program or a metric has made keeps its connections from call to call. So calls there must not block, as in any
    asynchronous program.
    """
    if not inspect.isawaitable(value):
        return value
    return asyncio.run_coroutine_threadsafe(_wait(value), _loop()).result()


async def _wait(value: Awaitable[Any]) -> Any:
    return await value


def _loop() -> asyncio.AbstractEventLoop:
    with _lock:
        loop = _loops.get(os.getpid())
        if loop is None:
            loop = _loops[os.getpid()] = asyncio.new_event_loop()
            thread = threading.Thread(target=loop.run_forever, daemon=True, name="dspy-dlpo event loop")
            Context().run(thread.start)  # It belongs to no rollout.
        return loop
