"""What a person sees of a run while it goes on."""

from __future__ import annotations

import sys

from tqdm import tqdm

from dspy_dlpo.records import StepRecord
from dspy_dlpo.result import DLPOResult


class Progress:
    """One line a step on the terminal: what came of it, the best score so far, calls spent of the budget.

    Args:
        max_metric_calls: The budget; None if it has no such limit.
        num_steps: The number of steps; None if unlimited.
    """

    def __init__(self, max_metric_calls: int | None, num_steps: int | None) -> None:
        self._budget = "" if max_metric_calls is None else f" of {max_metric_calls}"
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
            f"{record.spent.metric_calls}{self._budget} metric calls",
            file=sys.stderr,
        )

    def conclude(self, result: DLPOResult) -> None:
        """Print how the run ended."""
        before, after = result.val_aggregate_scores[0], result.val_aggregate_scores[result.best_idx]
        unparsed = result.history[-1].unparsed if result.history else 0
        lost = result.history[-1].lost if result.history else 0
        self.note(
            f"{result.stopped}; valset {before:.3f} -> {after:.3f}; {result.spent.metric_calls} metric calls, "
            f"{result.spent.lm_calls} LM calls"
            + (f"; {unparsed} replies could not be used" if unparsed else "")
            + (f"; {lost} rollouts were lost" if lost else "")
        )
