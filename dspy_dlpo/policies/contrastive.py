"""TCL: contrastive learning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import variance

from dspy_dlpo.core.records import Contrast, UpdateRequest
from dspy_dlpo.core.steps import StepRecord
from dspy_dlpo.policies.base import Policy, State, StepContext


class TextualContrastiveLearning(Policy):
    """Show the proposer what set better instructions apart from worse ones, to take up and to avoid.

    Every trial compares two instructions of a predictor on the same examples. Where the mean difference exceeds its
    own margin of error, the pair is remembered, better and worse, once. At each step some pairs are drawn, the clearer
    the likelier (weight 1/rank of the gain), and the proposer sees the sentences that only one side has. It costs no
    call of its own.

    Args:
        num_pairs: Pairs shown per step.
        max_pairs: Pairs remembered per predictor; the clearest stay.
        margin: What a gain must exceed to count, in standard errors of the mean difference.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> from dspy_dlpo.core.records import TextualGradient
        >>> request = UpdateRequest("self", ("Answer the question.",), TextualGradient("self", ()))
        >>> state = {"self": [[["Answer in digits."], ["Explain."], 0.3]]}  # As `learn` leaves it: better, worse, gain.
        >>> TextualContrastiveLearning().narrow(request, state, StepContext(step=1, seed=0)).contrasts
        (Contrast(better=('Answer in digits.',), worse=('Explain.',), gain=0.3),)

    References:
        Peng et al., DLPO, arXiv 2503.13413. Departures: theirs shows the best and worst whole prompt by training
        accuracy, apart by 0.15 whatever the number of examples; its memory fills with duplicates, and its sampling is
        never reached.
    """

    def __init__(self, num_pairs: int = 2, max_pairs: int = 16, margin: float = 1.0) -> None:
        for name, value, low in (("num_pairs", num_pairs, 1), ("max_pairs", max_pairs, 1), ("margin", margin, 0)):
            if not value >= low:
                raise ValueError(f"`{name}` must be at least {low}, but got {name}={value}.")
        self.num_pairs = num_pairs
        self.max_pairs = max_pairs
        self.margin = margin

    def narrow(self, request: UpdateRequest, state: State, ctx: StepContext) -> UpdateRequest:
        """Show some of the pairs."""
        ranked = [
            Contrast(tuple(better), tuple(worse), gain) for better, worse, gain in state.get(request.predictor, ())
        ]
        rng = ctx.rng(self.name, request.predictor)
        # Weighted sampling without replacement (Efraimidis and Spirakis 2006): the largest u^(1/weight), weight 1/rank.
        keys = [rng.random() ** (rank + 1) for rank in range(len(ranked))]
        drawn = sorted(range(len(ranked)), key=lambda rank: -keys[rank])[: self.num_pairs]
        return replace(request, contrasts=(*request.contrasts, *(ranked[rank] for rank in sorted(drawn))))

    def learn(self, record: StepRecord, state: State) -> State:
        """Remember the trial's pair if the data tell the two apart."""
        trial = record.trial
        if trial is None or not _clear(trial.differences, self.margin):
            return state
        after = dict(state)
        candidate = next(each for each in record.candidates if each.id == trial.candidate)
        for request in record.requests:
            edits = candidate.edits.get(request.predictor, ())
            added = [edit.text for edit in edits if edit.text]
            removed = [request.sentences[edit.at].strip() for edit in edits if edit.op in ("replace", "delete")]
            better, worse = (added, removed) if trial.gain > 0 else (removed, added)
            pairs = [list(pair) for pair in state.get(request.predictor, ())]
            if (added or removed) and not any(pair[:2] == [better, worse] for pair in pairs):
                pairs.append([better, worse, abs(trial.gain)])
                after[request.predictor] = sorted(pairs, key=lambda pair: -pair[2])[: self.max_pairs]
        return after


def _clear(differences: Sequence[float], margin: float) -> bool:
    size = len(differences)
    if not any(differences):
        return False
    prior = max(map(abs, differences)) ** 2  # So that a short run of equal differences does not look certain.
    spread = ((size - 1) * variance(differences) if size > 1 else 0.0) + prior
    return abs(sum(differences) / size) > margin * math.sqrt(spread) / size
