"""Run functions in threads that can be abandoned: each result is kept at once, and no call is waited for forever."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import ContextVar, copy_context
from typing import TypeVar

T = TypeVar("T")

_abandoned: ContextVar[Callable[[], bool]] = ContextVar("dspy_dlpo_abandoned", default=lambda: False)


def is_abandoned() -> bool:
    """Whether `run_in_threads` has given up the call in which this is asked: its result is wanted no more."""
    return _abandoned.get()()


def run_in_threads(
    functions: Sequence[Callable[[], T]],
    keep: Callable[[int, T | None], None],
    *,
    num_threads: int,
    timeout: float | None = None,
) -> None:
    """Call the functions, at most `num_threads` at a time, and hand over each result before its thread goes on.

    They start in order, each in a copy of the caller's context, where DSPy keeps its settings. The first exception, of
    a function or of `keep`, is raised here: what has not begun by then never begins, what runs is waited for and kept.
    Afterwards no thread is left but those of abandoned calls: at `timeout`, or all that run on Ctrl-C. The threads are
    daemons, so that an abandoned call does not hold the terminal, as in `concurrent.futures` it would.

    Args:
        functions: What to call.
        keep: Called with `(index, result)` in the thread that has the result, one call at a time; with `(index, None)`
            if the function was abandoned, whose result is dropped if it should come later.
        num_threads: Functions that run at once, those abandoned not counted.
        timeout: Seconds after which a function is abandoned and another thread takes its place; None for never.
    """
    context = copy_context()
    waiting = deque(range(len(functions)))
    running: dict[int, tuple[float, threading.Thread]] = {}  # When each began, the oldest first.
    threads: set[threading.Thread] = set()
    failures: list[BaseException] = []
    changed = threading.Condition()

    def start() -> None:
        thread = threading.Thread(target=work, daemon=True, name="dspy-dlpo")
        threads.add(thread)
        thread.start()

    def work() -> None:
        thread = threading.current_thread()
        while (index := begin()) is not None:
            result, failure = None, None
            try:
                own = context.copy()
                own.run(_abandoned.set, lambda: thread not in threads)
                result = own.run(functions[index])
            except BaseException as error:  # noqa: BLE001 - handed to the caller, whatever it is.
                failure = error
            with changed:
                if thread not in threads:
                    return
                end(index, result, failure)

    def begin() -> int | None:
        with changed:
            if failures or not waiting:
                return None
            index = waiting.popleft()
            running[index] = time.monotonic(), threading.current_thread()
            return index

    def end(index: int, result: T | None, failure: BaseException | None = None) -> None:
        try:
            if failure is not None:
                raise failure
            keep(index, result)
        except BaseException as error:  # noqa: BLE001 - handed to the caller, whatever it is.
            failures.append(error)
        del running[index]
        if not running and (failures or not waiting):
            changed.notify()

    try:
        for _ in range(min(num_threads, len(functions))):
            start()
        with changed:
            while running or (waiting and not failures):
                oldest, (began, thread) = next(iter(running.items()), (-1, (time.monotonic(), None)))
                left = None if timeout is None else began + timeout - time.monotonic()
                if left is None or left > 0:
                    changed.wait(left)
                else:
                    threads.discard(thread)
                    end(oldest, None)
                    start()
    except BaseException:
        with changed:
            waiting.clear()
            threads.clear()
        raise
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
