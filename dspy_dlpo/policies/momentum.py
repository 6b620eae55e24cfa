"""TMnt: momentum."""

from __future__ import annotations

from dataclasses import replace

from dspy_dlpo.core.likeness import normalised, same
from dspy_dlpo.core.records import Point, UpdateRequest
from dspy_dlpo.core.steps import StepRecord
from dspy_dlpo.policies.base import Policy, State, StepContext

_FORGOTTEN = 0.1


class TextualMomentum(Policy):
    """Let past gradients join the update, so that a complaint that recurs weighs more.

    Each predictor has a memory of points. At every step the weight of each is multiplied by `decay`; a new point that
    says the same as one in memory (see `normalised`) adds its weight to that one instead of being kept beside it. The
    proposer sees the points of this step with what they have in memory added, and the heaviest of the others. What an
    instruction says by now is left out.

    Args:
        decay: What remains of a weight after one step, in [0, 1).
        max_points: Points of a memory, and at most as many shown beside the step's own. This bounds the prompt whatever
            the number of steps.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> from dspy_dlpo.core.records import TextualGradient
        >>> request = UpdateRequest("self", ("Answer the question.",), TextualGradient("self", ()))
        >>> state = {"self": [["Answer in digits.", 1.2]]}  # As `learn` leaves it.
        >>> [point.text for point in TextualMomentum().narrow(request, state, StepContext(step=1, seed=0)).memory]
        ['Answer in digits.']

    References:
        Peng et al., DLPO, arXiv 2503.13413, whose code shows the last three gradients in full. Weights by age as in
        Polyak's heavy ball; merging as in TSGD-M, arXiv 2506.00400, which samples from past prompts instead.
    """

    def __init__(self, decay: float = 0.6, max_points: int = 6) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"`decay` must be in [0, 1), but got decay={decay}. At 1 nothing would be forgotten.")
        if max_points < 1:
            raise ValueError(f"`max_points` must be at least 1, but got max_points={max_points}.")
        self.decay = decay
        self.max_points = max_points

    def narrow(self, request: UpdateRequest, state: State, ctx: StepContext) -> UpdateRequest:
        """Add what the memory holds to the points of this step, and show the heaviest others."""
        remembered = [Point(text, (), weight) for text, weight in state.get(request.predictor, ())]
        points, rest = [], remembered
        for point in request.gradient.points:
            equal = [other for other in rest if same(point.text, other.text)]
            rest = [other for other in rest if other not in equal]
            points.append(replace(point, past=point.past + sum(other.past for other in equal)))
        sentences = {normalised(sentence) for sentence in request.sentences}
        said = [other for other in rest if normalised(other.text) in sentences]
        gradient = replace(request.gradient, points=tuple(sorted(points, key=lambda point: -point.weight)))
        memory = [*request.memory, *(other for other in rest if other not in said)]
        return replace(request, gradient=gradient, memory=tuple(memory))

    def learn(self, record: StepRecord, state: State) -> State:
        """Let the memory fade, and add the points of the step."""
        after = {
            predictor: [[text, weight * self.decay] for text, weight in points] for predictor, points in state.items()
        }
        for gradient in record.gradients:
            points = after.setdefault(gradient.predictor, [])
            for point in gradient.points:
                equal = next((known for known in points if same(known[0], point.text)), None)
                if equal is None:
                    points.append([point.text, float(len(point.examples))])
                else:
                    equal[1] += len(point.examples)
        return {
            predictor: sorted((p for p in points if p[1] >= _FORGOTTEN), key=lambda p: -p[1])[: self.max_points]
            for predictor, points in after.items()
        }
