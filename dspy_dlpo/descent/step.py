"""One step while it is taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from dspy_dlpo.core.records import Candidate, Refusal, Rollout, Spending, TextualGradient, UpdateRequest
from dspy_dlpo.core.steps import Outcome, StepRecord, Trial
from dspy_dlpo.policies.base import StepContext


@dataclass
class Step:
    """Collects what a step learns; `record` freezes it.

    Attributes:
        ctx: Index, seed and score range.
        incumbent: The candidate that it starts from.
        minibatch: The examples that it starts from.
        top_score: The score of a perfect rollout.
        rollouts: The incumbent's there, without those that were lost.
        gradients: What the critic says.
        remarks: What the backward pass met besides, with counts.
        requests: What the sources were asked, by predictor.
        candidates: What they proposed.
        refusals: What the rules kept out of the candidates, with the rule.
        race: Mean gains of the candidates on the first examples of the trial.
        trial: The winner against the incumbent.
        limit: Which limit ended the step; empty if none did.
    """

    ctx: StepContext
    incumbent: Candidate
    minibatch: Sequence[str]
    top_score: float
    rollouts: Sequence[Rollout] = ()
    gradients: tuple[TextualGradient, ...] = ()
    remarks: Mapping[str, int] = field(default_factory=dict)
    requests: dict[str, UpdateRequest] = field(default_factory=dict)
    candidates: tuple[Candidate, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    race: tuple[float, ...] = ()
    trial: Trial | None = None
    limit: str = ""

    @property
    def failures(self) -> list[Rollout]:
        """The rollouts that fell short of the top score."""
        return [rollout for rollout in self.rollouts if rollout.score < self.top_score]

    @property
    def successes(self) -> list[Rollout]:
        """The rollouts that reached it."""
        return [rollout for rollout in self.rollouts if rollout.score >= self.top_score]

    def record(self, **after: Any) -> StepRecord:
        """Return what the step did.

        Args:
            after: The fields of `StepRecord` that say where the run stands after it.
        """
        losses = [self.top_score - rollout.score for rollout in self.rollouts]
        return StepRecord(
            step=self.ctx.step,
            incumbent=self.incumbent.id,
            minibatch=tuple(rollout.example for rollout in self.rollouts),
            loss=fmean(losses) if losses else 0.0,
            top_score=self.top_score,
            failures=tuple(replace(rollout, spent=Spending()) for rollout in self.failures),
            gradients=self.gradients,
            remarks=self.remarks,
            requests=tuple(self.requests.values()),
            candidates=self.candidates,
            refusals=self.refusals,
            race=self.race,
            trial=self.trial,
            skipped=None if self.trial else self._why_no_trial(),
            **after,
        )

    def _why_no_trial(self) -> Outcome:
        if self.limit:
            return Outcome.CUT_SHORT
        if not self.rollouts:
            return Outcome.MINIBATCH_LOST
        if not self.failures:
            return Outcome.PERFECT_MINIBATCH
        return Outcome.NO_USABLE_EDIT if self.gradients else Outcome.NO_GRADIENT
