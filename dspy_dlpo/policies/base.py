"""What an update policy is."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dspy_dlpo.records import Candidate, StepRecord, Threshold, UpdateRequest
from dspy_dlpo.sentences import Edit

State = Mapping[str, Any]


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
        """
        key = f"{self.seed}/{policy}/{self.step}/{predictor}"
        return random.Random(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]))


class Policy:
    """One strategy of the update, with up to four moments, each optional.

    A subclass overrides the moments it needs. Policies know nothing of each other, and their order does not matter:
    caps take the minimum, frozen sentences and directives the union, thresholds add up. State goes in and comes out
    as JSON-serializable mappings, so a policy object holds its settings only and can serve two runs at once.
    """

    @property
    def name(self) -> str:
        """The class name, under which records and states keep what the policy did."""
        return type(self).__name__

    def init(self, requests: Sequence[UpdateRequest] = ()) -> State:
        """Return the state before the first step, or refuse the student.

        `requests` has one for each predictor: its sentences, those protected among them, and no gradient.
        """
        return {}

    def narrow(self, request: UpdateRequest, state: State, ctx: StepContext) -> UpdateRequest:
        """Narrow what the proposer is asked: cap on edits, frozen sentences, memory, exemplars, directives."""
        return request

    def propose(self, request: UpdateRequest, state: State, ctx: StepContext) -> Sequence[tuple[Edit, ...]]:
        """Propose edits of one's own: each item becomes a candidate, as far as it keeps the constraints.

        Asked for every predictor at every step, also without a gradient.
        """
        return ()

    def threshold(self, candidate: Candidate, incumbent: Candidate, state: State, ctx: StepContext) -> Threshold:
        """Say what the mean paired gain must exceed for this candidate; known before the first example is paid."""
        return Threshold()

    def learn(self, record: StepRecord, state: State) -> State:
        """Return the state after the step, which may have been accepted, refused or skipped."""
        return state
