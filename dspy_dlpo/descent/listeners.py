"""Listeners: called while a run goes on. The progress views and the trackers are listeners; users can add their own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import dspy

from dspy_dlpo.core.records import Candidate
from dspy_dlpo.core.steps import RunInfo, StepRecord
from dspy_dlpo.descent.outcome import RunResult
from dspy_dlpo.runtime.budget import Budget

_logger = logging.getLogger(__name__)


class Listener:
    """Follows a run. Override the methods you need; they are called one at a time, in the thread that called `compile`.

    If a listener raises, the error is logged and the run continues. A resumed run calls its listeners again from the
    first step.

    Example:
        >>> class PrintOutcome(Listener):
        ...     def on_step_end(self, record):
        ...         print(record.step, record.outcome)
        >>> listeners = [PrintOutcome()]  # For `DLPOOptimizer(listeners=...)`.
    """

    def on_run_start(self, run: RunInfo, budget: Budget) -> None:
        """Called when a run starts.

        Args:
            run: The settings, models and versions of the run.
            budget: Its limits, and what it has spent so far. `budget.stop(reason)` ends the run with the best so far.
        """

    def on_phase(self, phase: str) -> None:
        """Called when a phase of the run starts.

        Args:
            phase: A description: `scoring the student`, `running the minibatch`, `asking the critic`, ...
        """

    def on_candidate(self, candidate: Candidate, step: int) -> None:
        """Called for each new candidate, once.

        Args:
            candidate: The candidate, with its instructions, demos and edits.
            step: Index, from 0, of the step that made it.
        """

    def on_step_end(self, record: StepRecord) -> None:
        """Called after each completed step, once it is in the ledger.

        Args:
            record: Everything the step did, and what the run had spent by its end.
        """

    def on_run_end(self, result: RunResult, program: dspy.Module) -> None:
        """Called when the run has ended.

        Args:
            result: The result of the run.
            program: The program that `compile` is about to return.
        """

    def on_run_error(self, error: BaseException) -> None:
        """Called when an exception ends the run.

        Args:
            error: The exception, which may be a `KeyboardInterrupt`; `compile` raises it afterwards.
        """


class Listeners(Listener):
    """Calls several listeners, and logs their exceptions so that the run continues.

    Args:
        listeners: The listeners, called in this order.
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
