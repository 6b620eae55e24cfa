"""Changes that were tried before and refused, shown to the proposer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from dspy_dlpo.core.steps import StepRecord

_MOST = 5


def refused_before(history: Sequence[StepRecord], predictor: str) -> list[str]:
    """Return the last refused changes of a predictor's instruction, each a line with its measured difference.

    Args:
        history: The steps so far.
        predictor: Path of the predictor.

    References:
        The rejected-edit buffer of SkillOpt (arXiv 2605.23904); the authors' ablation loses a point or two without it.
    """
    return list(islice(_refused(history, predictor), _MOST))


def _refused(history: Sequence[StepRecord], predictor: str) -> Iterator[str]:
    """Yield the refused changes, the latest first: losers of a trial, and those that fell behind in a race."""
    for record in reversed(history):
        trial = record.trial
        for candidate, gain in zip(record.candidates, record.race, strict=False):
            is_loser = trial is not None and candidate.id == trial.candidate
            if trial is None or (trial.accepted if is_loser else gain >= 0):
                continue
            texts = [edit.text.strip() for edit in candidate.edits.get(predictor, ()) if edit.text.strip()]
            if texts:
                measured = f"{trial.gain:+.2f} on {len(trial.differences)} examples" if is_loser else f"{gain:+.2f}"
                yield f"Tried before and refused ({measured}): {' '.join(texts)}"
