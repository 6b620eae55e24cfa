"""Whether optimising is likely to pay: score, noise, headroom, and the smallest gain that can be told from nothing."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from statistics import NormalDist, fmean

import dspy

from dspy_dlpo.core.records import Candidate, Rollout, Spending
from dspy_dlpo.runtime.budget import Budget, Limits
from dspy_dlpo.runtime.data import Data
from dspy_dlpo.runtime.forward import Forward
from dspy_dlpo.runtime.ledger import Ledger
from dspy_dlpo.runtime.metric import Metric, snapped
from dspy_dlpo.runtime.prices import Prices, dollars
from dspy_dlpo.runtime.program import Student

_CONFIDENCE = 0.95
_POWER = 0.8


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """What a number of runs say about a program. All scores, and what is made of them, are on the metric's scale.

    Attributes:
        scores: The scores of each example, one for each repeat, by the example's name.
        score_range: Lowest and highest score of the metric.
        num_val_examples: Size of the valset on which a gain would be measured.
        errors: What the program or the metric raised, in the runs that failed.
        repeatable: Whether every model of the program has temperature 0.
        spent: What the diagnosis has cost.
    """

    scores: Mapping[str, tuple[float, ...]]
    score_range: tuple[float, float]
    num_val_examples: int
    errors: tuple[str, ...]
    repeatable: bool
    spent: Spending

    def __repr__(self) -> str:
        return f"Diagnosis(score {self.score:.3f} on {len(self.scores)} examples; print it to read it)"

    @property
    def score(self) -> float:
        """Mean over the examples of their mean scores."""
        return snapped(fmean(map(fmean, self.scores.values())), self.score_range)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the score for examples of this kind.

        Wilson's interval, with the examples as its trials. Between its ends no score varies more than one that is all
        or nothing (Bhatia and Davis), so that it is on the safe side for partial credit; and it does not shrink to a
        point when all scores are equal.

        References:
            Wilson, Probable Inference, the Law of Succession, and Statistical Inference, Journal of the American
            Statistical Association 22 (1927); Bhatia and Davis, A Better Bound on the Variance, American Mathematical
            Monthly 107 (2000).
        """
        low, high = self.score_range
        share, size = (self.score - low) / (high - low), len(self.scores)
        weight = NormalDist().inv_cdf((1 + _CONFIDENCE) / 2) ** 2 / size
        centre = (share + weight / 2) / (1 + weight)
        half = math.sqrt(weight * share * (1 - share) + weight**2 / 4) / (1 + weight)
        return low + max(centre - half, 0.0) * (high - low), low + min(centre + half, 1.0) * (high - low)

    @property
    def noise(self) -> float:
        """Standard deviation of the score between repeats of one example, pooled over the examples.

        NaN if no example was run twice.
        """
        degrees = sum(len(scores) - 1 for scores in self.scores.values())
        if not degrees:
            return math.nan
        return math.sqrt(
            sum((score - fmean(scores)) ** 2 for scores in self.scores.values() for score in scores) / degrees
        )

    @property
    def headroom(self) -> float:
        """The highest score that there can be, minus the program's."""
        return self.score_range[1] - self.score

    @property
    def headroom_of_failures(self) -> float:
        """The part of the headroom that even the best repeat of each example leaves; the rest is noise."""
        return fmean(self.score_range[1] - max(scores) for scores in self.scores.values())

    def detectable_gain(self, num_examples: int | None = None) -> float:
        """Return the smallest gain that a paired comparison with the program finds with 80 % power at 95 % confidence.

        With n examples and a paired difference of variance v, a two-sided test at level 1 - 0.95 finds a gain g with
        probability 0.8, or a little more, if g = (z_0.975 + z_0.8) * sqrt(v / n): Miller, "Adding Error Bars to Evals",
        arXiv 2411.00640. Of v it is known that both programs are noisy, which adds 2 * noise**2. The rest depends on
        the candidate. Taken here is one that mends some of what fails and harms nothing: v = g * (q - g) + 2 *
        noise**2, with q the size of a typical failure, mean(loss**2) / mean(loss). One that also does harm must gain
        more.

        Args:
            num_examples: Examples of the comparison, at least 1, each run once. Default: those of the valset.

        Returns:
            The gain, on the metric's scale; above `headroom` if so few examples cannot show any. NaN if no example
            failed, so that there is nothing to gain.
        """
        losses = [self.score_range[1] - snapped(fmean(scores), self.score_range) for scores in self.scores.values()]
        if not any(losses):
            return math.nan
        typical = fmean(loss**2 for loss in losses) / fmean(losses)
        factor = (NormalDist().inv_cdf((1 + _CONFIDENCE) / 2) + NormalDist().inv_cdf(_POWER)) ** 2
        size = factor + (self.num_val_examples if num_examples is None else num_examples)
        noise = 0.0 if math.isnan(self.noise) else self.noise
        # The formula, solved for g: (n + z^2) g^2 - z^2 q g - 2 z^2 noise^2 = 0.
        linear = factor * typical
        return (linear + math.sqrt(linear**2 + 8 * size * factor * noise**2)) / (2 * size)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Why optimising is unlikely to pay, or what to look at first; empty if nothing speaks against it."""
        num_runs = sum(map(len, self.scores.values()))
        if len(self.errors) == num_runs:
            return (f"Every run failed. Repair this first: {self.errors[0]}",)
        if self.headroom == 0:
            return ("Optimising is unlikely to pay: every run reached the top of `score_range`.",)
        found = []
        gain = self.detectable_gain()
        if gain > self.headroom:
            found.append(
                f"Optimising is unlikely to pay: {self.num_val_examples} validation examples cannot tell a gain below "
                f"{gain:.3f} from none, and the headroom is {self.headroom:.3f}. Use more examples."
            )
        if self.headroom_of_failures < self.headroom / 2:
            found.append(
                "Optimising may not pay: more than half of the headroom is noise. A lower temperature or a vote of "
                "several runs may give more than other words."
            )
        if all(score == self.score_range[0] for scores in self.scores.values() for score in scores):
            found.append(
                "No run scored above the bottom of `score_range`. Without partial credit or written feedback from the "
                "metric there is little to go by; check the metric with an answer that is right."
            )
        if self.errors:
            found.append(f"{len(self.errors)} of {num_runs} runs failed. The first: {self.errors[0]}")
        return tuple(found)

    def __str__(self) -> str:
        """The figures, one a line, and the warnings."""
        low, high = self.interval
        num_runs = sum(map(len, self.scores.values()))
        noise = f"{self.noise:.3f} between repeats of an example"
        if math.isnan(self.noise):
            noise = "not measured: no example was run twice"
        elif self.repeatable:
            noise += " (temperature 0: repeats are the same by construction)"
        kept = self.headroom_of_failures
        lines = [
            f"score     {self.score:.3f} (95 % interval {low:.3f} to {high:.3f}; {num_runs} runs of {len(self.scores)} "
            "examples)",
            f"noise     {noise}",
            f"headroom  {self.headroom:.3f}: {kept:.3f} in examples that always fall short, {self.headroom - kept:.3f} "
            "that a better repeat made up",
        ]
        if self.headroom:
            lines.append(
                f"a gain of {self.detectable_gain():.3f} can be told from none on {self.num_val_examples} validation "
                "examples (80 % power, 95 % confidence)"
            )
        lines.append(
            f"spent     {self.spent.lm_calls} LM calls, {self.spent.tokens} tokens, {dollars(self.spent.cost)}"
        )
        return "\n".join([*lines, *self.warnings])


def diagnose_run(
    student: Student,
    metric: Metric,
    data: Data,
    *,
    num_calls: int,
    prices: Prices,
    num_threads: int,
    failure_score: float,
    timeout: float | None,
    seed: int,
) -> Diagnosis:
    """Run a program on train examples, some of them several times, and say what was found.

    Args:
        student: The program.
        metric: The metric.
        data: The examples.
        num_calls: Runs in all.
        prices: What calls cost.
        num_threads: Runs in flight at once.
        failure_score: Score of a run in which the program or the metric raised.
        timeout: Seconds after which a run is given up; None for no limit. Such runs are left out.
        seed: Decides which examples are run.

    Raises:
        ValueError: If `num_calls` is below 4.
        RuntimeError: If every run was lost to a failing language model.
    """
    if isinstance(num_calls, bool) or not isinstance(num_calls, int) or num_calls < 4:
        raise ValueError(f"`num_calls` must be an integer of at least 4, but got num_calls={num_calls!r}. 40 is usual.")
    budget = Budget(Limits(max_metric_calls=num_calls), prices, num_threads)
    repeatable = student.is_repeatable
    names = [f"train:{index}" for index in range(len(data.given_trainset))]
    random.Random(f"{seed}/diagnose").shuffle(names)
    rollouts: list[Rollout] = []
    for number, size in enumerate(rounds(len(names), num_calls, repeatable)):
        copy = student.copy(Candidate({}), number)
        with dspy.context(lm=copy.lm), closing(Ledger(None, {})) as ledger:
            forward = Forward(
                Student(copy.program),
                metric,
                data,
                ledger=ledger,
                budget=budget,
                num_threads=num_threads,
                failure_score=failure_score,
                timeout=timeout,
            )
            rollouts += forward([(Candidate({}), name) for name in names[:size]])
    if all(rollout.lost for rollout in rollouts):
        raise RuntimeError(f"No run was scored: the language model could not be reached. {rollouts[0].error}")
    rollouts = [rollout for rollout in rollouts if not rollout.lost]
    scores: dict[str, tuple[float, ...]] = {}
    for rollout in rollouts:
        scores[rollout.example] = (*scores.get(rollout.example, ()), rollout.score)
    errors = [rollout.error for rollout in rollouts if rollout.error]
    return Diagnosis(
        scores=scores,
        score_range=metric.score_range,
        num_val_examples=len(data.valset),
        errors=tuple(errors),
        repeatable=repeatable,
        spent=budget.spent,
    )


def rounds(num_examples: int, num_calls: int, repeatable: bool) -> list[int]:
    """Return how many of the examples to run in each round, `num_calls` in all.

    Half of the calls are repeats, more if there are too few examples. Where repeats would say nothing, each example is
    run once before any is repeated.
    """
    first = min(num_examples, num_calls if repeatable else num_calls // 2)
    return [min(first, num_calls - done) for done in range(0, num_calls, first)]
