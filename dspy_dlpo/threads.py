"""Run functions in threads that never outlive their use: results as they come, Ctrl-C at once."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextvars import copy_context
from typing import TypeVar

T = TypeVar("T")


def run_in_threads(functions: Sequence[Callable[[], T]], num_threads: int) -> Iterator[tuple[int, T]]:
    """Call the functions, at most `num_threads` at a time, and yield `(index, result)` in order of completion.

    They start in order, each in a copy of the caller's context, where DSPy keeps its settings. The first exception is
    raised here; what has not begun by then, or when the caller stops listening, never begins. The threads are daemons,
    so that a call that hangs does not hold the terminal after Ctrl-C, as those of `concurrent.futures` would.
    """
    done: queue.SimpleQueue[tuple[int, T | None, BaseException | None]] = queue.SimpleQueue()
    waiting = iter([(index, copy_context(), function) for index, function in enumerate(functions)])
    lock, stop = threading.Lock(), threading.Event()

    def work() -> None:
        while not stop.is_set():
            with lock:
                task = next(waiting, None)
            if task is None:
                return
            index, context, function = task
            try:
                done.put((index, context.run(function), None))
            except BaseException as error:  # noqa: BLE001 - handed to the caller, whatever it is.
                stop.set()
                done.put((index, None, error))

    for _ in range(min(num_threads, len(functions))):
        threading.Thread(target=work, daemon=True, name="dspy-dlpo").start()
    try:
        for _ in functions:
            index, result, error = done.get()
            if error is not None:
                raise error
            yield index, result  # type: ignore[misc]  # Without an error there is a result.
    finally:
        stop.set()
