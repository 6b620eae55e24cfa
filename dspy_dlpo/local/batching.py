"""Answers several prompts at once: one thread steps the pipeline, the callers' threads wait for their answers."""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass, field
from typing import Any

from dspy_dlpo.runtime.threads import is_abandoned

_POLL = 0.5  # Seconds between two looks at whether the caller still waits. Windows hears Ctrl-C only then.


class Cancelled(RuntimeError):
    """The request was given up before its answer was there."""


@dataclass(eq=False)
class _Ask:
    """One request in flight."""

    tokens: Any
    config: Any
    done: threading.Event = field(default_factory=threading.Event)
    output: Any = None
    error: BaseException | None = None
    cancelled: bool = False

    def end(self, output: Any = None, error: BaseException | None = None) -> None:
        self.output, self.error = output, error
        self.done.set()


class Batcher:
    """Puts the requests of all threads into one pipeline, which answers them together.

    Args:
        pipeline: An `openvino_genai.ContinuousBatchingPipeline`. Only the thread of this object touches it.
    """

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self._changed = threading.Condition()
        self._new: list[_Ask] = []
        self._live: dict[_Ask, Any] = {}
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

    def ask(self, tokens: Any, config: Any) -> Any:
        """Return the pipeline's output for a prompt, once it is complete.

        An exception in the waiting thread, such as that of Ctrl-C, gives the request up and frees its slot; so does
        the run that abandons the thread.

        Raises:
            Cancelled: If `cancel` or `close` was called meanwhile.
            RuntimeError: If the pipeline failed.
        """
        ask = _Ask(tokens, config)
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
            for ask in [*self._new, *self._live]:
                ask.cancelled = True
                ask.end(error=Cancelled("The request was cancelled."))

    def close(self) -> None:
        """Give up everything in flight, end the thread, and let go of the pipeline."""
        with self._changed:
            self._end = self._end or Cancelled("The local model was closed while it answered.")
            self._changed.notify()
        self.cancel()
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._admit():
                self._pipeline.step()
                self._deliver()
        except BaseException as error:  # noqa: BLE001 - handed to all who wait.
            self._end = error
        with self._changed:
            asks, end = [*self._new, *self._live], self._end
            self._new.clear()
            self._live.clear()
            for ask in asks:
                if not ask.done.is_set():
                    ask.end(error=end)
        self._pipeline = None

    def _admit(self) -> bool:
        """Add what is new and drop what was cancelled; wait while there is nothing to do. False: the end."""
        with self._changed:
            while self._end is None and not self._new and not self._pipeline.has_non_finished_requests():
                self._changed.wait()
            if self._end is not None:
                return False
            new, self._new = self._new, []
            for ask in new:
                if not ask.cancelled:
                    try:
                        self._live[ask] = self._pipeline.add_request(next(self._numbers), ask.tokens, ask.config)
                    except RuntimeError as error:  # Of this request alone.
                        ask.end(error=error)
            for ask in [ask for ask in self._live if ask.cancelled]:
                self._live.pop(ask).cancel()
        return True

    def _deliver(self) -> None:
        with self._changed:
            for ask, handle in [*self._live.items()]:
                if handle.get_status().name != "RUNNING":
                    del self._live[ask]
                    outputs = handle.read_all() if handle.can_read() else []
                    ask.end(output=outputs[0] if outputs else None)
