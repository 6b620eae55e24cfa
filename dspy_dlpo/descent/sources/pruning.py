"""Candidates that the policies propose themselves: the instruction without one of its sentences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import zip_longest

from dspy_dlpo.core.records import TextualGradient
from dspy_dlpo.descent.origins import origins_of
from dspy_dlpo.descent.requests import Requests
from dspy_dlpo.descent.sources.base import Change, Proposal, Source
from dspy_dlpo.descent.step import Step
from dspy_dlpo.descent.walk import Walk


class Pruning(Source):
    """Asks the policies where a step has learnt nothing new; `TextualRegularization` leaves sentences out.

    Args:
        requests: Writes requests.
    """

    stage = 2

    def __init__(self, requests: Requests) -> None:
        self._requests = requests

    def propose(self, step: Step, walk: Walk, so_far: Sequence[Proposal]) -> Iterable[Proposal]:
        """Propose what each policy proposes for each predictor."""
        if not step.rollouts and not step.ctx.is_last:  # All were lost.
            return
        for name in step.incumbent.instructions:
            request = self._requests(step, TextualGradient(name, ()), walk)
            for edits in self._requests.policies.propose(request, walk.state, step.ctx):
                yield [Change(request, tuple(edits))]


def written_for(step: Step, walk: Walk, requests: Requests) -> list[str]:
    """Return the examples that the sentences were written for which the candidates of a step leave out, in turn.

    There are none if a candidate does anything else. A sentence that is needed for a rare case is missed there, where
    it is hardly ever missed on a few other examples.
    """
    edits = [(name, edit) for each in step.candidates for name, all_of in each.edits.items() for edit in all_of]
    if any(edit.op != "delete" for _, edit in edits):
        return []
    examples = []
    for name, edit in edits:
        left_out = requests.plain(step.incumbent, name).sentences[edit.at].strip()
        origins = origins_of(walk.student, walk.history, name, step.incumbent.id)
        points = [point for each in origins if each.sentence.strip() == left_out for point in each.points[:1]]
        examples.append([example for point in points for example in point.examples])
    return [name for names in zip_longest(*examples) for name in names if name is not None]
