"""What hears of a run while it goes on. The terminal views and the trackers are listeners; users write their own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import dspy

from dspy_dlpo.core.records import Candidate, RunInfo, StepRecord
from dspy_dlpo.descent.outcome import RunResult
from dspy_dlpo.runtime.budget import Budget

_logger = logging.getLogger(__name__)


class Listener:
    """Follows a run. Override what you need; all methods are called in the thread that called `compile`, one at a time.

    A listener that raises is reported in the log, and the run goes on. A resumed run tells its listeners everything
    again, from the first step.
    """

    def on_run_start(self, run: RunInfo, budget: Budget) -> None:
        """Called when a run starts.

        Args:
            run: What it was made with.
            budget: Its limits and, at any time, what it has spent. `budget.stop(reason)` ends the run gracefully.
        """

    def on_phase(self, phase: str) -> None:
        """Called when the run turns to something else.

        Args:
            phase: In words: `scoring the student`, `running the minibatch`, `asking the critic`, ...
        """

    def on_candidate(self, candidate: Candidate, step: int) -> None:
        """Called for each candidate that was not seen before.

        Args:
            candidate: Its instructions and edits.
            step: Index, from 0, of the step that made it.
        """

    def on_step_end(self, record: StepRecord) -> None:
        """Called after each completed step, which is in the ledger already.

        Args:
            record: All that the step did, and what the run had spent by its end.
        """

    def on_run_end(self, result: RunResult, program: dspy.Module) -> None:
        """Called when the run has ended.

        Args:
            result: What it found.
            program: What `compile` is about to return.
        """

    def on_run_error(self, error: BaseException) -> None:
        """Called when an exception ends the run.

        Args:
            error: The exception, which may be a `KeyboardInterrupt`; `compile` raises it afterwards.
        """


class Listeners(Listener):
    """Calls several listeners, and keeps their exceptions from the run.

    Args:
        listeners: They are told in this order.
    """

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self._listeners = tuple(listeners)

    def on_run_start(self, run: RunInfo, budget: Budget) -> None:
        """Call every listener."""
        self._tell("on_run_start", run, budget)

    def on_phase(self, phase: str) -> None:
        """Call every listener."""
        self._tell("on_phase", phase)

    def on_candidate(self, candidate: Candidate, step: int) -> None:
        """Call every listener."""
        self._tell("on_candidate", candidate, step)

    def on_step_end(self, record: StepRecord) -> None:
        """Call every listener."""
        self._tell("on_step_end", record)

    def on_run_end(self, result: RunResult, program: dspy.Module) -> None:
        """Call every listener."""
        self._tell("on_run_end", result, program)

    def on_run_error(self, error: BaseException) -> None:
        """Call every listener."""
        self._tell("on_run_error", error)

    def _tell(self, moment: str, *what: Any) -> None:
        for listener in self._listeners:
            try:
                getattr(listener, moment)(*what)
            except Exception:  # A run that was paid for does not end because a listener fails.
                _logger.exception("%s raised in %s; the run goes on.", type(listener).__name__, moment)
