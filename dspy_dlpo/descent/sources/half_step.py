"""Candidates that make half of another change."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dspy_dlpo.descent.sources.base import Change, Proposal, Source
from dspy_dlpo.descent.step import Step
from dspy_dlpo.descent.walk import Walk


class HalfStep(Source):
    """Proposes the first half of the edits of the step's first candidate, as a line search halves a step."""

    stage = 1
    reads_gradients = True

    def propose(self, step: Step, walk: Walk, so_far: Sequence[Proposal]) -> Iterable[Proposal]:
        """Propose the half, if there is a candidate."""
        return [[Change(each.request, each.edits[: len(each.edits) // 2]) for each in first] for first in so_far[:1]]
