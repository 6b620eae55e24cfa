"""What an update policy is."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dspy_dlpo.core.edits import Edit
from dspy_dlpo.core.records import Candidate, StepRecord, Threshold, UpdateRequest

State = Mapping[str, Any]
"""What a policy keeps from step to step: JSON-serializable, replaced and never changed."""


@dataclass(frozen=True)
class StepContext:
    """What a policy may know about the step besides its own state.

    Attributes:
        step: The run's step index, from 0.
        seed: The run's seed.
        width: Width of the metric's score range.
    """

    step: int
    seed: int
    width: float = 1.0

    def rng(self, policy: str, predictor: str = "") -> random.Random:
        """Return the random numbers of one policy at this step: a hash of seed, policy, step and predictor.

        There is no hidden random state to save, and one policy's draws do not disturb another's.

        Args:
            policy: Name of the policy.
            predictor: Path of the predictor, if each is to have numbers of its own.

        Returns:
            A generator; the same arguments give the same numbers.
        """
        key = f"{self.seed}/{policy}/{self.step}/{predictor}"
        return random.Random(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]))


class Policy:
    """One strategy of the update, with up to four moments, each optional.

    A subclass overrides the moments it needs. Policies know nothing of each other, and their order does not matter:
    caps take the minimum, frozen sentences and directives the union, thresholds add up. State goes in and comes out
    as JSON-serializable mappings, so a policy object holds its settings only and can serve two runs at once.

    References:
        Explicit state, made by `init`, follows the gradient transformations of optax. The strategies are those of Peng
        et al., DLPO, arXiv 2503.13413.
    """

    @property
    def name(self) -> str:
        """The class name, under which records and states keep what the policy did."""
        return type(self).__name__

    def init(self, requests: Sequence[UpdateRequest] = ()) -> State:
        """Return the state before the first step, or refuse the student.

        Args:
            requests: One for each predictor: its sentences, those protected among them, and no gradient.

        Returns:
            The state.

        Raises:
            ValueError: If the policy cannot work on this student.
        """
        return {}

    def narrow(self, request: UpdateRequest, state: State, ctx: StepContext) -> UpdateRequest:
        """Narrow what the proposer is asked: cap on edits, frozen sentences, memory, exemplars, directives.

        Args:
            request: What it is asked so far for one predictor, other policies included.
            state: The policy's own.
            ctx: The step.

        Returns:
            The request with more limits; see `UpdateRequest.narrowed`.
        """
        return request

    def propose(self, request: UpdateRequest, state: State, ctx: StepContext) -> Sequence[tuple[Edit, ...]]:
        """Propose edits of one's own: each of the first items becomes a candidate, as far as it keeps the constraints.

        Asked where the gradients of a step bring no candidate, for one predictor after another.

        Args:
            request: The predictor's sentences and all limits, without a gradient.
            state: The policy's own.
            ctx: The step.

        Returns:
            The edits of each candidate, none by default.
        """
        return ()

    def threshold(self, candidate: Candidate, incumbent: Candidate, state: State, ctx: StepContext) -> Threshold:
        """Say what the mean paired gain must exceed for this candidate; known before the first example is paid.

        Args:
            candidate: What is to be tried.
            incumbent: What it must beat.
            state: The policy's own.
            ctx: The step; `ctx.width` is what a share of the score range is multiplied with.

        Returns:
            What is asked of the gain, on the metric's scale, 0 by default. Below 0, a loss is let pass.
        """
        return Threshold()

    def learn(self, record: StepRecord, state: State) -> State:
        """Return the state after the step, which may have been accepted, refused or skipped.

        Args:
            record: All that the step did.
            state: The policy's own, before it; it must not be changed.

        Returns:
            The state for the next step.
        """
        return state
