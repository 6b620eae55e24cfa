"""How a run is ended from outside: Ctrl-C, a file named `STOP` in its folder, or cancelling what awaits it.

Ctrl-C is answered on standard error, whatever `verbose`: who has pressed it must know that it was heard.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar, copy_context
from types import FrameType
from typing import TypeVar

from dspy_dlpo.runtime.budget import Budget

T = TypeVar("T")


class _Awaited:
    """The budgets of a run that is awaited, also one that is made only after it was cancelled."""

    def __init__(self) -> None:
        self._budgets: list[Budget] = []
        self._is_cancelled = False

    def add(self, budget: Budget) -> None:
        self._budgets.append(budget)
        if self._is_cancelled:
            budget.stop("cancelled")

    def cancel(self) -> None:
        self._is_cancelled = True
        for budget in self._budgets:
            budget.stop("cancelled")


_awaited: ContextVar[_Awaited | None] = ContextVar("dspy_dlpo_awaited", default=None)


async def in_a_thread(function: Callable[[], T]) -> T:
    """Await a function that makes a run, without blocking the event loop; cancelled, it stops the run's budget."""
    awaited, context = _Awaited(), copy_context()
    context.run(_awaited.set, awaited)
    try:
        return await asyncio.get_running_loop().run_in_executor(None, context.run, function)
    except asyncio.CancelledError:
        awaited.cancel()
        raise


@contextmanager
def ended_by_ctrl_c(budget: Budget) -> Iterator[None]:
    """Let the first Ctrl-C within the block stop the budget, and a second one interrupt at once.

    A stop file that an earlier run has left is removed first: it was not meant for this one.

    What is in flight is waited for and kept. Signals reach the main thread alone, and a program that has a handler of
    its own keeps it: in both cases nothing changes.
    """
    budget.remove_stop_file()
    if (awaited := _awaited.get()) is not None:
        awaited.add(budget)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        budget.stop("stopped by Ctrl-C")
        with suppress(RuntimeError):  # The signal came while this thread was writing there: the run stops all the same.
            print("DLPO: stopping after what is in flight; Ctrl-C again to stop at once", file=sys.stderr)

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
