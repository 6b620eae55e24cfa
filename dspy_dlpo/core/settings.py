"""The numbers that steer a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Settings of `DLPOOptimizer` that few users need: for research, and for models and metrics out of the ordinary.

    Args:
        batch_size: Train examples a step starts from, those not counted that the incumbent is known to pass. Default:
            8, or the whole trainset if that is smaller.
        num_candidates: Most candidates per step; those made of the metric's own words run beside them.
        max_trial_examples: Most train examples on which a candidate meets the incumbent, and most validation examples
            on which a new incumbent meets the best before the end; None for all.
        max_passing: Passing examples of a minibatch that the proposer is shown for an edit, so that it does not break
            what works. For a whole rewrite it is shown up to 8, and a critic that is asked in batches up to 3. With 0
            nobody is shown any.
        confidence: How sure a comparison must be before it stops early, in (0.5, 1).
        failure_score: Score of an example on which the program or the metric raises. Default: the lowest score.
        num_repeats: Runs of a candidate on each example, each a metric call; their mean is its score there. More than 1
            is for programs whose answers vary (a temperature above 0): it measures each example better for the price of
            fewer examples, and where one run fails and another is right, the critic sees both.
        max_lost_share: Share of the latest rollouts (up to 50) that may be lost, to failing LMs or to `timeout`, before
            the run stops with an error. A lost rollout costs its example, not the comparison it was for.
        show_gold: Whether the critic sees the labels of failing examples. Text of labels can then end up in prompts.
            What the metric's feedback says, it sees in any case.
        critic_model: The LM that criticises. Default: `prompt_model`.
        critic: Takes the place of the critic: any callable or `dspy.Module` that takes and returns the fields of
            `dspy_dlpo.CritiqueWithInput`. It is called with the critic's LM as DSPy's LM.
            Requirements are a list, or lines that begin with "- "; what it writes otherwise must help on the trial.
        proposer: Takes the place of the proposer, with the fields of `dspy_dlpo.ProposeEditsKeeping`.
        critic_chunk_size: Failing examples shown to the critic at once. More than one: it is asked for the causes that
            they share. Default: 1 if the critic is also the program's model, which suits weak models; else up to 8.
        chain: Whether complaints are carried back from predictor to predictor. If not, each predictor is shown the
            metric's feedback on the whole program.
        sources: Names of the classes of `dspy_dlpo.descent.sources` that propose candidates. Default: all.
        component_selector: Which predictors move in a step: `"blame"` (the one blamed for most failing examples, and
            others in proportion), `"round_robin"`, `"all"`, or a callable as in `dspy_dlpo.descent.selectors`.

    Example:
        >>> Tuning(batch_size=4).num_candidates
        2
    """

    batch_size: int | None = None
    num_candidates: int = 2
    max_trial_examples: int | None = 8
    max_passing: int = 1
    confidence: float = 0.95
    failure_score: float | None = None
    num_repeats: int = 1
    max_lost_share: float = 0.5
    show_gold: bool = True
    critic_model: Any = None
    critic: Callable[..., Any] | None = None
    proposer: Callable[..., Any] | None = None
    critic_chunk_size: int | None = None
    chain: bool = True
    sources: Sequence[str] | None = None
    component_selector: str | Callable[..., Any] = "blame"


@dataclass(frozen=True)
class Settings:
    """The numbers that steer a run, with every default resolved; `DLPOOptimizer` and `Tuning` document them."""

    trainset: Sequence[str]
    valset: Sequence[str]
    num_steps: int | None
    batch_size: int
    num_candidates: int
    max_trial_examples: int | None
    max_passing: int
    score_range: tuple[float, float]
    confidence: float
    seed: int
    num_repeats: int = 1
    patience: int | None = None
    max_demos: int = 0

    @property
    def first_look(self) -> int:
        """Examples before a comparison is looked at first."""
        return min(self.batch_size, self.max_trial_examples or self.batch_size)

    @property
    def width(self) -> float:
        """Width of the score range."""
        return self.score_range[1] - self.score_range[0]
