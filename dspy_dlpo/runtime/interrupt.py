"""How a person ends a run: Ctrl-C, or a file named `STOP` in its folder.

Ctrl-C is answered on standard error, whatever `verbose`: who has pressed it must know that it was heard.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from dspy_dlpo.runtime.budget import Budget


@contextmanager
def ended_by_ctrl_c(budget: Budget) -> Iterator[None]:
    """Let the first Ctrl-C within the block stop the budget, and a second one interrupt at once.

    A stop file that an earlier run has left is removed first: it was not meant for this one.

    What is in flight is waited for and kept. Signals reach the main thread alone, and a program that has a handler of
    its own keeps it: in both cases nothing changes.
    """
    budget.remove_stop_file()
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
