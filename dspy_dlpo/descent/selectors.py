"""Which predictors move in a step.

A selector takes the gradients of the step, what is known of the step, and the records of the steps before; it returns
the gradients of the predictors that move.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dspy_dlpo.core.records import TextualGradient, UpdateRequest
from dspy_dlpo.core.steps import StepRecord
from dspy_dlpo.policies.base import StepContext

ComponentSelector = Callable[[Sequence[TextualGradient], StepContext, Sequence[StepRecord]], Sequence[TextualGradient]]
"""Called as `selector(gradients, ctx, history)`; returns those of `gradients` whose predictors move.

There is a gradient for each predictor that the critic had something to say about; `ctx` has the step's index and its
random numbers, `history` the records of the steps before, the latest last.
"""


def by_blame(
    gradients: Sequence[TextualGradient], ctx: StepContext, history: Sequence[StepRecord]
) -> list[TextualGradient]:
    """Move the predictor that is blamed for most failing rollouts; others as often as they are blamed beside it.

    One that is blamed half as much as the first moves in half of the steps. See `ComponentSelector` for the arguments.
    """
    most = max((gradient.blame for gradient in gradients), default=0.0)
    return [
        gradient
        for gradient in gradients
        if gradient.blame >= most * ctx.rng("component_selector", gradient.predictor).random()
    ]


def round_robin(
    gradients: Sequence[TextualGradient], ctx: StepContext, history: Sequence[StepRecord]
) -> list[TextualGradient]:
    """Move one predictor a step: the one that has not moved for longest. See `ComponentSelector` for the arguments."""
    moved = {request.predictor: record.step for record in history for request in record.requests if _has_moved(request)}
    return sorted(gradients, key=lambda gradient: moved.get(gradient.predictor, -1))[:1]


def everyone(
    gradients: Sequence[TextualGradient], ctx: StepContext, history: Sequence[StepRecord]
) -> Sequence[TextualGradient]:
    """Move every predictor that has a gradient. See `ComponentSelector` for the arguments."""
    return gradients


def _has_moved(request: UpdateRequest) -> bool:
    return bool(request.gradient.points)  # A request without a gradient bounds a policy's own proposal.


SELECTORS: dict[str, ComponentSelector] = {"blame": by_blame, "round_robin": round_robin, "all": everyone}
"""The selectors that `component_selector` can name."""
