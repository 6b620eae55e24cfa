"""A run in plain lines: what is logged, and what is shown where there is no terminal."""

from __future__ import annotations

import sys

import dspy
from tqdm import tqdm

from dspy_dlpo.core.records import RunInfo, StepRecord
from dspy_dlpo.descent.listeners import Listener
from dspy_dlpo.descent.outcome import RunResult
from dspy_dlpo.runtime.budget import Budget
from dspy_dlpo.runtime.prices import dollars


class Lines(Listener):
    """One line a step on the terminal: what came of it, the best score so far, what is spent of each limit."""

    def on_run_start(self, run: RunInfo, budget: Budget) -> None:
        """Say on what the choice will be made, if that was not said by the user."""
        self._budget = budget
        self._steps = "" if run.num_steps is None else f"/{run.num_steps}"
        if run.held_out != "given":
            _print(f"no valset given: the result is chosen on {run.num_val} examples, {run.held_out}")

    def on_step_end(self, record: StepRecord) -> None:
        """Print the step."""
        if record.trial is None:
            outcome: str = record.outcome
        else:
            word = "accepted" if record.accepted else "refused"
            outcome = f"{word} ({record.trial.gain:+.3f} on {len(record.trial.differences)} examples)"
        _print(
            f"step {record.step + 1}{self._steps}: incumbent {record.score:.3f} on {len(record.minibatch)}, "
            f"{outcome}; best {record.best_score:.3f} on the valset; {self._budget.progress(record.spent)}"
        )

    def on_run_end(self, result: RunResult, program: dspy.Module) -> None:
        """Print how the run ended."""
        before, after = result.val_aggregate_scores[0], result.val_aggregate_scores[result.best_idx]
        gain = f"gain {result.gain}" if result.best_idx else "gain 0, no candidate was better than the student"
        unparsed = result.history[-1].unparsed if result.history else 0
        lost = result.history[-1].lost if result.history else 0
        spent = result.spent
        _print(
            f"{result.stopped}; valset {before:.3f} -> {after:.3f}, {gain}; {spent.metric_calls} metric calls, "
            f"{spent.lm_calls} LM calls, {spent.tokens} tokens, {dollars(spent.cost)}"
            + (f"; {unparsed} replies could not be used" if unparsed else "")
            + (f"; {lost} rollouts were lost" if lost else "")
        )


def _print(text: str) -> None:
    tqdm.write(f"DLPO: {text}", file=sys.stderr)
