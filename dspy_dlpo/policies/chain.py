"""All policies of a run as one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from operator import add

from dspy_dlpo.core.edits import Edit
from dspy_dlpo.core.records import Candidate, UpdateRequest
from dspy_dlpo.core.steps import StepRecord, Threshold
from dspy_dlpo.policies.base import Policy, State, StepContext


class Chain(Policy):
    """Several policies as one: limits and thresholds add up, and each policy keeps a state of its own.

    This is the only place that loops over policies.

    Args:
        policies: The policies. Their order does not matter.

    References:
        `chain` of optax, which does the same for gradient transformations.
    """

    def __init__(self, policies: Sequence[Policy]) -> None:
        self.policies = tuple(policies)

    def init(self, requests: Sequence[UpdateRequest] = ()) -> State:
        """Return the first state of each policy, under `states`."""
        return {"states": [policy.init(requests) for policy in self.policies]}

    def narrow(self, request: UpdateRequest, state: State, ctx: StepContext) -> UpdateRequest:
        """Let each policy narrow the request."""
        for policy, own in self._with_states(state):
            request = policy.narrow(request, own, ctx)
        return request

    def propose(self, request: UpdateRequest, state: State, ctx: StepContext) -> Sequence[tuple[Edit, ...]]:
        """Return what the policies propose, one after another."""
        return [edits for policy, own in self._with_states(state) for edits in policy.propose(request, own, ctx)]

    def threshold(self, candidate: Candidate, incumbent: Candidate, state: State, ctx: StepContext) -> Threshold:
        """Return the sum of the thresholds."""
        parts = (policy.threshold(candidate, incumbent, own, ctx) for policy, own in self._with_states(state))
        return reduce(add, parts, Threshold())

    def learn(self, record: StepRecord, state: State) -> State:
        """Let each policy learn from the step."""
        return {"states": [policy.learn(record, own) for policy, own in self._with_states(state)]}

    def _with_states(self, state: State) -> Iterator[tuple[Policy, State]]:
        return zip(self.policies, state["states"], strict=True)
