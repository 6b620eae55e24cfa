"""Which source is asked first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from dspy_dlpo.core.steps import StepRecord
from dspy_dlpo.descent.sources.base import Source


def in_order(sources: Sequence[Source], history: Sequence[StepRecord]) -> list[Source]:
    """Return the sources in the order in which a step asks them: first the one whose candidates were ahead most often.

    A source is rated by the mean of its Beta posterior: the share of its candidates that ran and then moved the
    incumbent upwards, with one success and one failure imagined. So a source that was never tried comes before one that
    mostly fails, and calls go where gains came from. Of equals, the given order decides. Everything follows from the
    records, so there is no state to keep.

    Args:
        sources: The sources.
        history: The steps so far.
    """
    runs: Counter[str] = Counter()
    gains: Counter[str] = Counter()
    for record in history:
        runs.update(each.source for each in record.candidates[: len(record.race)])
        if record.trial and record.accepted and record.trial.gain > 0:
            gains.update(each.source for each in record.candidates if each.id == record.trial.candidate)
    return sorted(sources, key=lambda source: (source.stage, -(gains[source.name] + 1) / (runs[source.name] + 2)))
