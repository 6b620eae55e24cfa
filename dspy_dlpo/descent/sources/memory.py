"""What was tried before and refused, for whoever proposes next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from dspy_dlpo.core.records import StepRecord

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
    """Yield the refused changes, the latest first."""
    for record in reversed(history):
        trial = record.trial
        if trial is None or trial.accepted or not trial.differences:
            continue
        loser = next(each for each in record.candidates if each.id == trial.candidate)
        texts = [edit.text.strip() for edit in loser.edits.get(predictor, ()) if edit.text.strip()]
        if texts:
            num_examples = len(trial.differences)
            yield f"Tried before and refused ({trial.gain:+.2f} on {num_examples} examples): {' '.join(texts)}"
