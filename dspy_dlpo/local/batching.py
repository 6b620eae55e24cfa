"""Answers several prompts at once: one thread steps the model's process, the callers' threads wait for answers."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from dspy_dlpo.local import worker
from dspy_dlpo.runtime.threads import is_abandoned

_POLL = 0.5  # Seconds between two looks at whether the caller still waits. Windows hears Ctrl-C only then.


class Cancelled(RuntimeError):
    """The request was given up before its answer was there."""


class Refused(ValueError):
    """The model cannot take this request, which says nothing about the others."""


class Worker(Protocol):
    """What computes: `dspy_dlpo.local.worker.Server`, or the process that has one."""

    def step(self, message: dict[str, Any]) -> dict[str, Any]:
        """Take new requests in and compute one more token of each; see `Server.step`."""

    def close(self) -> None:
        """Free the weights."""


class Process:
    """A process with the model.

    Args:
        settings: The arguments of `Server`.

    Raises:
        ValueError: If it cannot load the model.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        command = [sys.executable, "-P", str(Path(worker.__file__)), json.dumps(settings)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C on the terminal is for the user's process, which then ends this one.
        )
        try:
            problem = self._read()
        except BaseException:
            self.close()
            raise
        if problem:
            self.close()
            raise ValueError(problem["text"])

    def step(self, message: dict[str, Any]) -> dict[str, Any]:
        """Let the process take a step.

        Raises:
            RuntimeError: If it has failed, or is gone.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except (OSError, ValueError) as error:
            raise RuntimeError(f"The local model's process is gone (exit code {self._process.poll()}).") from error
        reply = self._read()
        if "kind" in reply:
            raise RuntimeError(reply["text"])
        return reply

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise RuntimeError(f"The local model's process ended (exit code {code}). Is there enough memory?")
        reply: dict[str, Any] = json.loads(line)
        return reply


@dataclass(eq=False)
class _Ask:
    """One request in flight."""

    number: int
    messages: list[dict[str, str]]
    settings: dict[str, Any]
    done: threading.Event = field(default_factory=threading.Event)
    output: Any = None
    error: BaseException | None = None
    cancelled: bool = False

    def end(self, output: Any = None, error: BaseException | None = None) -> None:
        self.output, self.error = output, error
        self.done.set()


class Batcher:
    """Hands the requests of all threads to one worker, which answers them together.

    Args:
        worker: What computes. Only the thread of this object speaks to it.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._changed = threading.Condition()
        self._new: list[_Ask] = []
        self._live: dict[int, _Ask] = {}
        self._end: BaseException | None = None
        self._numbers = itertools.count()
        self._thread = threading.Thread(target=self._run, daemon=True, name="dspy-dlpo-local-model")
        self._thread.start()

    @property
    def is_open(self) -> bool:
        """Whether it takes requests."""
        return self._end is None

    @property
    def in_flight(self) -> int:
        """How many requests are being answered or wait for a slot."""
        with self._changed:
            return len(self._new) + len(self._live)

    def ask(self, messages: list[dict[str, str]], settings: dict[str, Any]) -> Any:
        """Return the worker's answer to a prompt, once it is complete.

        An exception in the waiting thread, such as that of Ctrl-C, gives the request up and frees its slot; so does
        the run that abandons the thread.

        Raises:
            Cancelled: If `cancel` or `close` was called meanwhile.
            Refused: If the worker cannot take the request.
            RuntimeError: If the worker failed.
        """
        ask = _Ask(next(self._numbers), messages, settings)
        with self._changed:
            if self._end is not None:
                raise self._end
            self._new.append(ask)
            self._changed.notify()
        try:
            while not ask.done.wait(_POLL):
                if is_abandoned():
                    raise Cancelled("The call was given up before its answer was there.")
        except BaseException:
            ask.cancelled = True
            raise
        if ask.error is not None:
            raise ask.error
        return ask.output

    def cancel(self) -> None:
        """Cancel everything in flight: waiting callers get `Cancelled` at once, and the slots are free a step later."""
        with self._changed:
            for ask in [*self._new, *self._live.values()]:
                ask.cancelled = True
                ask.end(error=Cancelled("The request was cancelled."))

    def close(self) -> None:
        """Give up everything in flight, end the thread, and let go of the worker."""
        with self._changed:
            self._end = self._end or Cancelled("The local model was closed while it answered.")
            self._changed.notify()
        self.cancel()
        self._thread.join()

    def _run(self) -> None:
        try:
            while (message := self._message()) is not None:
                self._deliver(self._worker.step(message))
        except BaseException as error:  # noqa: BLE001 - handed to all who wait.
            self._end = error
        with self._changed:
            asks, end = [*self._new, *self._live.values()], self._end
            self._new.clear()
            self._live.clear()
            for ask in asks:
                if not ask.done.is_set():
                    ask.end(error=end)
        self._worker.close()

    def _message(self) -> dict[str, Any] | None:
        """Return what is new and what was cancelled; wait while there is nothing to do. None: the end."""
        with self._changed:
            while self._end is None and not self._new and not self._live:
                self._changed.wait()
            if self._end is not None:
                return None
            new, self._new = [ask for ask in self._new if not ask.cancelled], []
            cancelled = [number for number, ask in self._live.items() if ask.cancelled]
            for number in cancelled:
                del self._live[number]
            self._live |= {ask.number: ask for ask in new}
        asked = [{"id": ask.number, "messages": ask.messages, "settings": ask.settings} for ask in new]
        return {"new": asked, "cancelled": cancelled}

    def _deliver(self, reply: dict[str, Any]) -> None:
        with self._changed:
            for number, problem in reply["failed"]:
                if ask := self._live.pop(number, None):
                    kind = Refused if problem["kind"] == "ValueError" else RuntimeError
                    ask.end(error=kind(problem["text"]))
            for number, answer in reply["done"]:
                if ask := self._live.pop(number, None):
                    ask.end(output=answer)
