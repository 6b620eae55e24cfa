"""Whether two mathematical expressions are the same, found out by math-verify in a process of its own.

math-verify bounds its time with signals, which work in the main thread only, and some short expressions (a tower of
powers) take more memory than there is. So another process does the work, under limits, and dies instead of this one.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import subprocess
import sys
import threading

SECONDS = 10.0
"""Time for one comparison."""
BYTES = 2**31
"""Memory of the process, where the system can limit it."""


class Equivalence:
    """Compares expressions in LaTeX; one after the other, whatever the thread.

    Args:
        seconds: Time for one comparison.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        atexit.register(self.close)

    def __call__(self, gold: str, given: str) -> bool | None:
        """Return whether they are the same, or None if that could not be found out within the limits.

        Raises:
            RuntimeError: If math-verify does not start.
        """
        with self._lock:
            process = self._process = self._process or _start()
            assert process.stdin is not None
            assert process.stdout is not None
            watch = threading.Timer(self.seconds, process.kill)
            watch.start()
            reply = ""
            with contextlib.suppress(OSError):  # The process has died.
                process.stdin.write(json.dumps([gold, given]) + "\n")
                process.stdin.flush()
                reply = process.stdout.readline()
            watch.cancel()
            if not reply:
                self.close()
            return json.loads(reply) if reply else None

    def close(self) -> None:
        """End the process; the next comparison starts another."""
        if self._process:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _start() -> subprocess.Popen[str]:
    command = [sys.executable, "-P", __file__]  # Not as a module: that would import the whole package.
    pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nothing, text=True)
    assert process.stdout is not None
    if not process.stdout.readline():
        process.communicate()
        raise RuntimeError(f"math-verify could not be started. Run {' '.join(command)} to see why.")
    return process


def _serve() -> None:
    import math_verify

    with contextlib.suppress(ImportError):  # There is no such module on Windows.
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    logging.disable()  # math-verify warns that it has no time limit of its own.
    replies, sys.stdout = sys.stdout, sys.stderr
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        gold, given = (math_verify.parse(f"${text}$", parsing_timeout=None) for text in json.loads(line))
        same = math_verify.verify(gold, given, float_rounding=15, timeout_seconds=None) if given else None
        print(json.dumps(same), file=replies, flush=True)


if __name__ == "__main__":
    _serve()
