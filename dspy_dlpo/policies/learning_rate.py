"""TLR: the learning rate."""

from __future__ import annotations

from dspy_dlpo.core.records import UpdateRequest
from dspy_dlpo.policies.base import Policy, State, StepContext
from dspy_dlpo.policies.schedules import Schedule, as_schedule


class TextualLearningRate(Policy):
    """Bound the number of sentences of an instruction that one step may edit.

    Plays the part of the step size: a small rate keeps what already works, a large one explores. Each added, deleted
    or modified sentence is one edit; a moved one is one edit too. The bound is held in code, whatever the model
    writes: of the edits proposed, a candidate takes at most this many.

    Args:
        max_edits: Edits allowed per step and predictor, in sentences, at least 1. A constant, or a schedule called with
            the run's step index (from 0), rounded down.

    Raises:
        ValueError: At construction if a constant is below 1, or at the step where a schedule returns such a value.

    Example:
        >>> from dspy_dlpo.core.records import TextualGradient
        >>> request = UpdateRequest("self", ("Answer the question.",), TextualGradient("self", ()))
        >>> TextualLearningRate(3).narrow(request, {}, StepContext(step=0, seed=0)).max_edits
        3

    References:
        Peng et al., DLPO, arXiv 2503.13413. The authors' code states the bound in the prompt but never checks it.
    """

    def __init__(self, max_edits: float | Schedule = 3) -> None:
        self.max_edits = max_edits
        if not callable(max_edits):
            self._cap(0)

    def narrow(self, request: UpdateRequest, state: State, ctx: StepContext) -> UpdateRequest:
        """Set the cap."""
        return request.narrowed(max_edits=self._cap(ctx.step))

    def _cap(self, step: int) -> int:
        value = as_schedule(self.max_edits)(step)
        if not value >= 1:
            where = f" at step {step}" if callable(self.max_edits) else ""
            raise ValueError(f"`max_edits` must be at least 1, but got max_edits={value}{where}.")
        return int(value + 1e-9)  # A schedule may compute 3 as 2.9999.
