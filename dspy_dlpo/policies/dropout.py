"""TDO: dropout."""

from __future__ import annotations

from dspy_dlpo.core.records import UpdateRequest
from dspy_dlpo.policies.base import Policy, State, StepContext


class TextualDropout(Policy):
    """Freeze a random share of the sentences for one step, so that no update leans on changing them all.

    Frozen sentences stand verbatim and in order in every candidate of the step; edits of them are left out in code.
    Each step and predictor has its own draw.

    Args:
        rate: Probability with which each sentence is frozen, in [0, 1).

    Raises:
        ValueError: If the rate is outside [0, 1).

    Example:
        >>> from dspy_dlpo.core.records import TextualGradient
        >>> request = UpdateRequest("self", ("Be brief. ", "Be kind. ", "Use digits."), TextualGradient("self", ()))
        >>> policy = TextualDropout(0.3)
        >>> [sorted(policy.narrow(request, {}, StepContext(step, seed=0)).frozen) for step in range(3)]
        [[2], [0, 1, 2], [1]]

    References:
        Peng et al., DLPO, arXiv 2503.13413. The authors' code cuts sentences at every full stop ("3.14" too) and only
        asks the model to keep them.
    """

    def __init__(self, rate: float = 0.3) -> None:
        if not 0 <= rate < 1:
            raise ValueError(
                f"`rate` must be in [0, 1), but got rate={rate}. A rate of 1 would freeze the whole instruction."
            )
        self.rate = rate

    def narrow(self, request: UpdateRequest, state: State, ctx: StepContext) -> UpdateRequest:
        """Freeze the sentences drawn."""
        rng = ctx.rng(self.name, request.predictor)
        drawn = frozenset(index for index in range(len(request.sentences)) if rng.random() < self.rate)
        return request.narrowed(frozen=drawn)
