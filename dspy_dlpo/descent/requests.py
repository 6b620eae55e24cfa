"""What the sources of candidates are asked for one predictor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dspy_dlpo.core.protection import Protection
from dspy_dlpo.core.records import Candidate, Rollout, TextualGradient, UpdateRequest
from dspy_dlpo.descent.backward import call_text
from dspy_dlpo.policies.base import State, StepContext
from dspy_dlpo.policies.chain import Chain


@dataclass(frozen=True)
class Requests:
    """Writes requests: the sentences of an instruction, what should change, and the limits of every policy.

    Args:
        protection: Finds protected text.
        policies: The strategies.
    """

    protection: Protection
    policies: Chain

    def __call__(
        self,
        candidate: Candidate,
        gradient: TextualGradient,
        state: State,
        ctx: StepContext,
        passing: Sequence[Rollout] = (),
    ) -> UpdateRequest:
        """Return the request for the predictor of a gradient, within what all policies allow.

        Args:
            candidate: The incumbent.
            gradient: What should change; it may have no points.
            state: The state of the policies.
            ctx: The step.
            passing: Rollouts that went right and must go right again.
        """
        calls = (call for rollout in passing for call in rollout.calls if call.predictor == gradient.predictor)
        request = replace(self.plain(candidate, gradient.predictor), gradient=gradient)
        return self.policies.narrow(replace(request, passing=tuple(map(call_text, calls))), state, ctx)

    def plain(self, candidate: Candidate, predictor: str) -> UpdateRequest:
        """Return a request that only what is protected narrows."""
        sentences, frozen = self.protection.split(predictor, candidate.instructions[predictor])
        return UpdateRequest(predictor, sentences, TextualGradient(predictor, ()), frozen=frozen)
