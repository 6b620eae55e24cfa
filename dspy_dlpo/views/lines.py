"""A run in plain lines: what is logged, and what is printed where there is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable

import dspy
from tqdm import tqdm

from dspy_dlpo.core.steps import RunInfo, StepRecord
from dspy_dlpo.core.visible import visible
from dspy_dlpo.descent.listeners import Listener
from dspy_dlpo.descent.outcome import RunResult
from dspy_dlpo.runtime.budget import Budget
from dspy_dlpo.views.words import (
    best_of,
    ending_of,
    gain_of,
    listed,
    minibatch_of,
    mishaps,
    outcome_of,
    resumed,
    scores_of,
    spending,
    took,
)


class Lines(Listener):
    """One line a step: what came of it, the best score so far, what is spent of each limit.

    Args:
        say: Takes each line. Default: prints it on standard error, above progress bars.
    """

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self._say = say or print_line

    def on_run_start(self, run: RunInfo, budget: Budget) -> None:
        """Say what the reader should know before the first step."""
        self._run, self._budget = run, budget
        self._steps = "" if run.num_steps is None else f"/{run.num_steps}"
        for line in opening(run):
            self._say(line)

    def on_step_end(self, record: StepRecord) -> None:
        """Say what the step did."""
        self._say(
            f"step {record.step + 1}{self._steps}: {minibatch_of(record)}, "
            f"{outcome_of(record)}; best on the valset {best_of(record, self._run)}; "
            f"{self._budget.progress(record.spent)}"
        )

    def on_run_end(self, result: RunResult, program: dspy.Module) -> None:
        """Say how the run ended."""
        self._say(closing(result))

    def on_run_error(self, error: BaseException) -> None:
        """Say what ended the run."""
        self._say(f"ended by {type(error).__name__}: {error}".removesuffix(": "))


def opening(run: RunInfo) -> list[str]:
    """Return what the reader should know before the first step."""
    held_out = f"no valset given: the result is chosen on {run.num_val} examples, {run.held_out}"
    return [line for line in (resumed(run), "" if run.held_out == "given" else held_out) if line]


def closing(result: RunResult) -> str:
    """Return how a run ended: why, the scores, the gain, what was spent and what went wrong."""
    before, after = scores_of(result)
    return listed(
        [
            f"ended: {ending_of(result)}",
            f"valset {before} -> {after}, gain {gain_of(result)}",
            spending(result.spent) + (f" in {took(result.run)}" if took(result.run) else ""),
            *mishaps(result),
        ]
    )


def print_line(text: str) -> None:
    """Print a line on standard error, above progress bars."""
    tqdm.write(f"DLPO: {visible(text)}", file=sys.stderr)
