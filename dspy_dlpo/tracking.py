"""What a person sees of a run while it goes on."""

from __future__ import annotations

import sys

from tqdm import tqdm

from dspy_dlpo.budget import Budget
from dspy_dlpo.prices import dollars
from dspy_dlpo.records import StepRecord
from dspy_dlpo.result import DLPOResult


class Progress:
    """One line a step on the terminal: what came of it, the best score so far, what is spent of each limit.

    Args:
        budget: The limits.
        num_steps: The number of steps; None if unlimited.
    """

    def __init__(self, budget: Budget, num_steps: int | None) -> None:
        self._budget = budget
        self._steps = "" if num_steps is None else f"/{num_steps}"

    def note(self, text: str) -> None:
        """Print a remark."""
        tqdm.write(f"DLPO: {text}", file=sys.stderr)

    def __call__(self, record: StepRecord) -> None:
        """Print a step."""
        if record.trial is None:
            outcome = record.skipped
        else:
            word = "accepted" if record.accepted else "refused"
            outcome = f"{word} ({record.trial.gain:+.3f} on {len(record.trial.differences)} examples)"
        tqdm.write(
            f"DLPO: step {record.step + 1}{self._steps}: incumbent {record.score:.3f} on {len(record.minibatch)}, "
            f"{outcome}; best {record.best_score:.3f} on the valset; "
            f"{self._budget.progress(record.spent)}",
            file=sys.stderr,
        )

    def conclude(self, result: DLPOResult) -> None:
        """Print how the run ended."""
        before, after = result.val_aggregate_scores[0], result.val_aggregate_scores[result.best_idx]
        gain = f"gain {result.gain}" if result.best_idx else "gain 0, no candidate was better than the student"
        unparsed = result.history[-1].unparsed if result.history else 0
        lost = result.history[-1].lost if result.history else 0
        spent = result.spent
        self.note(
            f"{result.stopped}; valset {before:.3f} -> {after:.3f}, {gain}; {spent.metric_calls} metric calls, "
            f"{spent.lm_calls} LM calls, {spent.tokens} tokens, {dollars(spent.cost)}"
            + (f"; {unparsed} replies could not be used" if unparsed else "")
            + (f"; {lost} rollouts were lost" if lost else "")
        )
