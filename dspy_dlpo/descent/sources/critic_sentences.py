"""Candidates that add the critic's own sentences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dspy_dlpo.core.edits import Edit
from dspy_dlpo.descent.sources.base import Change, Proposal, Source, combined
from dspy_dlpo.descent.step import Step
from dspy_dlpo.descent.walk import Walk

REASON = "the critic's own sentence"


class CriticSentences(Source):
    """Adds what the critic asks for, in its own words, at the end of the instruction.

    The words are those of the complaint. A weak proposer loses some of them.
    """

    reads_gradients = True

    def propose(self, step: Step, walk: Walk, so_far: Sequence[Proposal]) -> Iterable[Proposal]:
        """Propose the sentences for all predictors that move, then for each alone."""
        changes = []
        for request in step.requests.values():
            end = len(request.sentences) - 1
            edits = tuple(
                Edit("add", end, point.text, REASON, must_help=point.is_loose) for point in request.gradient.points
            )
            changes.append(Change(request, edits))
        return combined(changes)
