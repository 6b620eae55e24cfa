"""TSA: simulated annealing."""

from __future__ import annotations

import math

from dspy_dlpo.core.records import Candidate
from dspy_dlpo.core.steps import Threshold
from dspy_dlpo.policies.base import Policy, State, StepContext
from dspy_dlpo.policies.schedules import Schedule, as_schedule, exponential


class TextualSimulatedAnnealing(Policy):
    """Accept a worse candidate with probability exp(gain / temperature); cool at every step.

    With U drawn uniformly from (0, 1] once per step, "accept with probability exp(gain/T)" is "accept when the gain
    exceeds T*ln(U)", a threshold known before the first example is paid. Every improvement is accepted. The best
    candidate on the valset is kept apart, so accepting a loss never loses it.

    Args:
        temperature: On the scale of the metric, at least 0: at `temperature=0.05` a drop of 0.05 is accepted with
            probability 0.37. A constant, or a schedule called with the run's step index (from 0). Default: from 0.05
            of the score range, times 0.7 at each step.
        max_drop: A drop larger than this is refused whatever the draw; None for no such rule.

    Raises:
        ValueError: At construction if a constant is negative or not a number, or at the step where a schedule
            returns such a value; or if `max_drop` is negative.

    Example:
        >>> one = Candidate({"self": "Answer the question."})
        >>> policy = TextualSimulatedAnnealing(exponential(0.05, 0.5))
        >>> [round(policy.threshold(one, one, {}, StepContext(step, seed=0)).level, 3) for step in range(3)]
        [-0.041, -0.032, -0.002]

    References:
        Peng et al., DLPO, arXiv 2503.13413. Departures: their temperature of 64 on scores in [0, 1] accepts a drop of
        0.25 with probability 0.996, so ours is on the score scale; theirs starts from score 0, so that the first
        candidate is always accepted, and cools only after an acceptance. `max_drop=0.3` is the drop they always refuse.
        Kirkpatrick, Gelatt and Vecchi, Science 220 (1983). Korattikara, Chen and Welling, arXiv 1304.5299, for the
        threshold form.
    """

    def __init__(self, temperature: float | Schedule | None = None, max_drop: float | None = None) -> None:
        self.temperature = temperature
        self.max_drop = max_drop
        if not callable(temperature):
            self._temperature(StepContext(0, 0))
        if max_drop is not None and not max_drop >= 0:
            raise ValueError(f"`max_drop` must be at least 0, but got max_drop={max_drop}. Use None for no such rule.")

    def threshold(self, candidate: Candidate, incumbent: Candidate, state: State, ctx: StepContext) -> Threshold:
        """Draw the threshold."""
        temperature = self._temperature(ctx)
        draw = 1.0 - ctx.rng(self.name).random()  # In (0, 1], so that its logarithm exists.
        floor = None if self.max_drop is None else -self.max_drop
        return Threshold(temperature * math.log(draw), {"temperature": temperature, "draw": draw}, floor)

    def _temperature(self, ctx: StepContext) -> float:
        default = exponential(0.05 * ctx.width, 0.7)
        value = as_schedule(default if self.temperature is None else self.temperature)(ctx.step)
        if not (value >= 0 and math.isfinite(value)):
            where = f" at step {ctx.step}" if callable(self.temperature) else ""
            raise ValueError(f"`temperature` must be at least 0, but got temperature={value}{where}.")
        return value
