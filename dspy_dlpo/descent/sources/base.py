"""What a source of candidates is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from dspy_dlpo.core.edits import Edit
from dspy_dlpo.core.records import Demo, UpdateRequest
from dspy_dlpo.descent.step import Step
from dspy_dlpo.descent.walk import Walk
from dspy_dlpo.runtime.asking import Asker


@dataclass(frozen=True)
class Change:
    """What a candidate is to change in one predictor.

    Attributes:
        request: The request it answers.
        edits: Changes of sentences, the most useful first: a limit cuts the list at its end.
        demos: The demos that the predictor is to have behind its own; None leaves them as they are.
    """

    request: UpdateRequest
    edits: tuple[Edit, ...]
    demos: tuple[Demo, ...] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether it changes nothing."""
        return not self.edits and self.demos is None


Proposal = Sequence[Change]
"""What one candidate is to change: at most one change for each predictor."""


class Source(ABC):
    """Proposes candidates from what a step has learnt. One subclass is one file.

    A source need not keep the limits: what it proposes is screened and cut to the limits of the request, and the trial
    decides about it, whichever source it came from.
    """

    stage: Literal[0, 1, 2] = 0
    """When it is asked: 0 first, 1 after those, 2 only where the others have brought no candidate."""

    beside: bool = False
    """Whether its candidates run beside those of the others: they take no place of theirs, and do not end the race."""

    reads_gradients: bool = False
    """Whether what it proposes follows from what the critic said."""

    ask: Asker | None = None
    """The model that it asks; None if it asks none."""

    @property
    def name(self) -> str:
        """The class name, under which a candidate says where it came from."""
        return type(self).__name__

    @abstractmethod
    def propose(self, step: Step, walk: Walk, so_far: Sequence[Proposal]) -> Iterable[Proposal]:
        """Propose candidates, the best first; as many are taken as the step can try.

        Args:
            step: What this step has learnt; `step.requests` holds a request for each predictor that moves.
            walk: Where the run stands.
            so_far: What was taken from the sources before this one in this step.

        Returns:
            The proposals.

        Raises:
            BudgetSpent: If the budget ends on the way.
        """


def combined(changes: Sequence[Change]) -> list[Proposal]:
    """Return proposals made of one change for each predictor: all together, then each alone, the most blamed first.

    Alone, a wrong change of one predictor cannot hide a right change of another.
    """
    found = [change for change in changes if change.edits]
    alone = sorted(found, key=lambda change: -change.request.gradient.blame)
    return [found, *([change] for change in alone if len(alone) > 1)] if found else []
