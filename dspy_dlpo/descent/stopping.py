"""When a run ends."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial

from dspy_dlpo.core.settings import Settings
from dspy_dlpo.core.steps import Outcome
from dspy_dlpo.descent.sampling import Sampler
from dspy_dlpo.descent.step import Step
from dspy_dlpo.descent.walk import Walk
from dspy_dlpo.runtime.budget import Budget, BudgetSpent
from dspy_dlpo.runtime.faults import Outage
from dspy_dlpo.runtime.forward import Scores
from dspy_dlpo.runtime.secrets import redacted

MAX_IDLE_STEPS = 10
_logger = logging.getLogger(__name__)


def early_end(walk: Walk, limit: Exception) -> str:
    """Return why a run ends within a step: for a limit, or for a language model that fails for good.

    Raises:
        Exception: `limit` itself, if it is a failure and nothing was found by then that could be lost.
    """
    is_failure = isinstance(limit, Outage) or not isinstance(limit, BudgetSpent)
    if is_failure and not any(record.candidates for record in walk.history):
        raise limit
    reason = redacted(str(limit))
    if is_failure:
        _logger.warning("The run ends early, with the best so far: %s", reason)
    return reason


@dataclass(frozen=True)
class Stopping:
    """Says after each step whether the run goes on.

    Args:
        settings: The numbers.
        budget: What may be spent. A person who stops the run stops the budget.
        forward: Knows the scores.
        sampler: Knows what the next step would run.
    """

    settings: Settings
    budget: Budget
    forward: Scores
    sampler: Sampler

    def reason(self, walk: Walk, step: Step) -> str:
        """Return why the run ends after this step; empty if it goes on."""
        settings, num_steps = self.settings, len(walk.history)
        if step.limit:
            return step.limit
        if walk.history[-1].outcome is Outcome.PERFECT_MINIBATCH and self._is_perfect(walk):
            return "the program is perfect on the whole trainset"
        if num_steps == settings.num_steps:
            return f"{num_steps} steps are done"
        if walk.num_without_gain == settings.patience:
            return f"nothing better in {walk.num_without_gain} steps"
        if walk.num_idle >= max(MAX_IDLE_STEPS, -(-len(settings.trainset) // settings.batch_size)):
            return f"{walk.num_idle} steps in a row had nothing to try"
        try:
            self.budget.check(self._least_calls(walk))  # Else critic and proposer would be paid for nothing.
        except BudgetSpent as limit:
            return str(limit)
        return ""

    def _is_perfect(self, walk: Walk) -> bool:
        return all(self.forward.passes(walk.incumbent, name) for name in self.settings.trainset)

    def _least_calls(self, walk: Walk) -> int:
        """Return the metric calls that the next step needs to try its candidates."""
        settings, incumbent = self.settings, walk.incumbent
        minibatch = self.sampler.minibatch(walk.position, partial(self.forward.passes, incumbent))
        first = self.sampler.fresh(walk.position + len(minibatch), minibatch, settings.first_look)
        unpaid = sum(self.forward.score(incumbent, name) is None for name in {*minibatch, *first})
        return (unpaid + settings.num_candidates * len(first)) * settings.num_repeats
