"""What a run found, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dspy_dlpo.core.records import Candidate, Spending
from dspy_dlpo.core.steps import RunInfo, StepRecord
from dspy_dlpo.descent.statistics import Gain

NOT_ENDED = "not ended"
"""Why a run ended that did not."""


@dataclass(frozen=True, repr=False)
class RunResult:
    """The course of a run and what it chose.

    Attributes:
        candidates: The student first, then every candidate that was scored on the valset, in order of appearance.
        val_aggregate_scores: Mean score of each candidate on the validation examples it was scored on.
        num_val_examples: On how many that was; the student and the best have the whole valset, if the limits reached so
            far.
        best_idx: Index of the candidate that was returned.
        gain: Its gain over the student on the valset; the interval allows for its having been chosen there. Exactly 0
            if the student was returned. If no valset could be held out, the examples also made the candidates: then
            the gain looks too good, which no interval can mend; see `DLPOResult.evaluate`.
        history: One record a step.
        spent: What the run cost.
        stopped: Why it ended.
        log_dir: Where its ledger is; None if it was kept in memory.
        seed: The run's seed.
        score_range: Lowest and highest score of the metric.
        failure_score: Score of an example on which the program or the metric raised.
        run: What it was made with.
        val_subscores: The score of each candidate on each validation example that it was scored on, by the example's
            name: `val:3` is `valset[3]`, and `train:3`, of a valset that was held out, is `trainset[3]`.
        lost: Rollouts lost to failing language models or the time limit, those of the final choice included. With a
            `log_dir`, the same call tries those again that no completed step has built on.
        errors: Rollouts in which the program or the metric raised; they score `failure_score`.
    """

    candidates: tuple[Candidate, ...]
    val_aggregate_scores: tuple[float, ...]
    num_val_examples: tuple[int, ...]
    best_idx: int
    gain: Gain
    history: tuple[StepRecord, ...]
    spent: Spending
    stopped: str
    log_dir: str | None
    seed: int
    score_range: tuple[float, float]
    failure_score: float
    run: RunInfo
    val_subscores: tuple[Mapping[str, float], ...] = ()
    lost: int = 0
    errors: int = 0

    @property
    def best(self) -> Candidate:
        """The candidate that was chosen."""
        return self.candidates[self.best_idx]

    @property
    def best_candidate(self) -> Mapping[str, str]:
        """The instructions that were chosen, by predictor."""
        return self.best.instructions

    @property
    def has_ended(self) -> bool:
        """Whether the run came to its end and made its choice."""
        return self.stopped != NOT_ENDED

    @property
    def unparsed(self) -> int:
        """Critic and proposer calls without a usable reply, even when asked for again."""
        return self.history[-1].unparsed if self.history else 0

    @property
    def score_before(self) -> float:
        """Mean score of the student on the validation examples it was scored on; NaN if there were none."""
        return self.val_aggregate_scores[0]

    @property
    def score_after(self) -> float:
        """Mean score of the candidate that was chosen, likewise."""
        return self.val_aggregate_scores[self.best_idx]

    def numbers(self) -> dict[str, float]:
        """Return the figures of the end by name, as a step has them, and the gain; what is not known is left out."""
        known = {
            "best_score": self.score_after,
            **self.spent.figures(),
            "val_score_before": self.score_before,
            "val_score_after": self.score_after,
            "gain": self.gain.mean,
            "gain_low": self.gain.low,
            "gain_high": self.gain.high,
        }
        return {name: number for name, number in known.items() if number is not None}

    @property
    def total_metric_calls(self) -> int:
        """How often the metric was called."""
        return self.spent.metric_calls
