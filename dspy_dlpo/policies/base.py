"""What an update policy is."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dspy_dlpo.core.edits import Edit
from dspy_dlpo.core.records import Candidate, UpdateRequest
from dspy_dlpo.core.steps import StepRecord, Threshold

State = Mapping[str, Any]
"""What a policy keeps from step to step. It is JSON-serializable, and is replaced instead of changed."""


@dataclass(frozen=True)
class StepContext:
    """What a policy knows about a step besides its own state.

    Attributes:
        step: The run's step index, from 0.
        seed: The run's seed.
        width: Width of the metric's score range.
        is_last: Whether it is one of the last steps, which ask no model and only leave out what never helped.
    """

    step: int
    seed: int
    width: float = 1.0
    is_last: bool = False

    def rng(self, policy: str, predictor: str = "") -> random.Random:
        """Return a random generator for one policy at this step, seeded by a hash of seed, policy, step and predictor.

        So no random state has to be saved, and the draws of one policy do not depend on those of another.

        Args:
            policy: Name of the policy.
            predictor: Path of the predictor, if each predictor gets its own draws.

        Returns:
            A generator; the same arguments give the same numbers.
        """
        key = f"{self.seed}/{policy}/{self.step}/{predictor}"
        return random.Random(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]))


class Policy:
    """One strategy of the update. A subclass overrides the methods it needs; each has a neutral default.

    Policies do not know each other, and their order does not matter: the smallest cap holds, frozen sentences and
    directives are united, thresholds add up. State is passed in and returned as a JSON-serializable mapping, so a
    policy object holds only its settings, and two runs can share it.

    Example:
        >>> class KeepFirstSentence(Policy):
        ...     def narrow(self, request, state, ctx):
        ...         return request.narrowed(frozen=frozenset({0}))
        >>> KeepFirstSentence().name
        'KeepFirstSentence'

    References:
        Explicit state, made by `init`, follows the gradient transformations of optax. The strategies are those of Peng
        et al., DLPO, arXiv 2503.13413.
    """

    @property
    def name(self) -> str:
        """The class name, which records use to say what the policy did."""
        return type(self).__name__

    def init(self, requests: Sequence[UpdateRequest] = ()) -> State:
        """Return the state before the first step, or refuse the student.

        Args:
            requests: One for each predictor, with its sentences and which of them are protected, without a gradient.

        Returns:
            The state.

        Raises:
            ValueError: If the policy cannot work on this student.
        """
        return {}

    def narrow(self, request: UpdateRequest, state: State, ctx: StepContext) -> UpdateRequest:
        """Limit the edits of one predictor in this step, or add what the proposer should know.

        Args:
            request: The request so far, with the limits of the policies before this one.
            state: This policy's state.
            ctx: The step.

        Returns:
            The request with further limits: see `UpdateRequest.narrowed`.
        """
        return request

    def propose(self, request: UpdateRequest, state: State, ctx: StepContext) -> Sequence[tuple[Edit, ...]]:
        """Propose edits of this policy's own. Called for each predictor if the step has no other candidate.

        Args:
            request: The predictor's sentences and all limits, without a gradient.
            state: This policy's state.
            ctx: The step.

        Returns:
            One item per candidate: its edits, which are screened and limited like those of any source.
        """
        return ()

    def threshold(self, candidate: Candidate, incumbent: Candidate, state: State, ctx: StepContext) -> Threshold:
        """Return what the mean paired gain of a candidate must exceed. Called before the first example is paid.

        Args:
            candidate: The candidate that will be tried.
            incumbent: The candidate it is compared with.
            state: This policy's state.
            ctx: The step; multiply a share of the score range by `ctx.width`.

        Returns:
            A threshold on the metric's scale, 0 by default. A negative threshold accepts a loss of that size.
        """
        return Threshold()

    def learn(self, record: StepRecord, state: State) -> State:
        """Return the state after the step, which may have been accepted, refused or skipped.

        Args:
            record: Everything the step did.
            state: This policy's state before the step; it must not be changed.

        Returns:
            The state for the next step.
        """
        return state
