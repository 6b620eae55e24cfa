"""What the sources of candidates are asked for one predictor."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dspy_dlpo.core.protection import Protection
from dspy_dlpo.core.records import Candidate, TextualGradient, UpdateRequest
from dspy_dlpo.descent.step import Step
from dspy_dlpo.descent.walk import Walk
from dspy_dlpo.descent.wording import call_text
from dspy_dlpo.policies.chain import Chain


@dataclass(frozen=True)
class Requests:
    """Writes requests: the sentences of an instruction, what should change, and the limits of every policy.

    Args:
        protection: Finds protected text.
        policies: The strategies.
        max_passing: Passing rollouts of the minibatch that are shown beside what should change.
    """

    protection: Protection
    policies: Chain
    max_passing: int = 0

    def __call__(self, step: Step, gradient: TextualGradient, walk: Walk) -> UpdateRequest:
        """Return the request for the predictor of a gradient, within what all policies allow.

        Args:
            step: Has the incumbent, and the rollouts that went right and must go right again.
            gradient: What should change; it may have no points.
            walk: Has the state of the policies.
        """
        passing = step.successes[: self.max_passing] if gradient.points else []
        calls = (call for rollout in passing for call in rollout.calls if call.predictor == gradient.predictor)
        request = replace(self.plain(step.incumbent, gradient.predictor), gradient=gradient)
        request = replace(request, passing=tuple(map(call_text, calls)))
        return self.policies.narrow(request, walk.state, step.ctx)

    def plain(self, candidate: Candidate, predictor: str) -> UpdateRequest:
        """Return a request that only what is protected narrows."""
        sentences, frozen = self.protection.split(predictor, candidate.instructions[predictor])
        return UpdateRequest(predictor, sentences, TextualGradient(predictor, ()), frozen=frozen)
