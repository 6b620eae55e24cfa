"""Which predictors move in a step: a selector takes those that have a gradient and returns those that move."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dspy_dlpo.policies.base import StepContext
from dspy_dlpo.records import TextualGradient

ComponentSelector = Callable[[Sequence[TextualGradient], StepContext], Sequence[TextualGradient]]


def by_blame(gradients: Sequence[TextualGradient], ctx: StepContext) -> list[TextualGradient]:
    """Move the predictor that is blamed for most failing rollouts; others as often as they are blamed beside it."""
    most = max((gradient.blame for gradient in gradients), default=0.0)
    return [
        gradient
        for gradient in gradients
        if gradient.blame >= most * ctx.rng("component_selector", gradient.predictor).random()
    ]


def round_robin(gradients: Sequence[TextualGradient], ctx: StepContext) -> Sequence[TextualGradient]:
    """Move one predictor a step, each in turn."""
    return [gradients[ctx.step % len(gradients)]] if gradients else []


def everyone(gradients: Sequence[TextualGradient], ctx: StepContext) -> Sequence[TextualGradient]:
    """Move every predictor that has a gradient."""
    return gradients


SELECTORS: dict[str, ComponentSelector] = {"blame": by_blame, "round_robin": round_robin, "all": everyone}
