"""What the valset decides: the best so far, the final choice, and the gain that is reported."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from statistics import fmean

from dspy_dlpo.acceptance import decide, looks
from dspy_dlpo.budget import BudgetSpent
from dspy_dlpo.forward import Forward
from dspy_dlpo.intervals import Gain
from dspy_dlpo.records import Candidate


class Choice:
    """Keeps the best candidate on the valset, and chooses in the end.

    Args:
        forward: Runs candidates on examples.
        student: What a run starts from.
        valset: Names of the validation examples, in random order.
        score_range: Lowest and highest score of the metric.
        confidence: How sure a comparison must be before it stops early.
        first_look: Examples before a comparison is looked at first.

    Attributes:
        best: The best so far.
    """

    def __init__(
        self,
        forward: Forward,
        student: Candidate,
        valset: Sequence[str],
        *,
        score_range: tuple[float, float],
        confidence: float,
        first_look: int,
    ) -> None:
        self.best = student
        self._forward, self._student, self._valset = forward, student, valset
        self._score_range, self._confidence, self._first_look = score_range, confidence, first_look
        self._entrants = {student.id: student}

    def enter(self, candidate: Candidate) -> None:
        """Let a new incumbent meet the best so far.

        Raises:
            BudgetSpent: If the budget ends before that is decided. The candidate takes part in the final choice.
        """
        self._entrants.setdefault(candidate.id, candidate)
        if self._beats(candidate, self.best):
            self.best = candidate

    @property
    def best_score(self) -> float:
        """Mean score of the best so far on the validation examples it was scored on; 0 if all were lost."""
        return fmean(self._forward.scores(self.best, self._valset) or [0.0])

    def conclude(self) -> Gain:
        """Choose among the student and all that were ever incumbent, as far as the budget reaches; return the gain.

        The best so far is scored on the whole valset, and so is whoever is ahead of it on the examples that both have:
        an early decision may have been wrong. Then the highest mean gain over the student wins; ties go to the earlier.
        If the budget does not even reach for the best so far, the examples that it has decide.
        """
        best, leaders = self.best, {self._student.id, self.best.id}
        with suppress(BudgetSpent):
            self._forward.scored(best, self._valset)
            self._beats([*self._entrants.values()][-1], best)  # The budget may have ended before they met.
            for candidate in self._entrants.values():
                if self._lead(candidate, best) > 0:
                    self._forward.scored(candidate, self._valset)
                    leaders.add(candidate.id)
        finalists = [candidate for candidate in self._entrants.values() if candidate.id in leaders]
        self.best = max(finalists, key=lambda candidate: self._lead(candidate, self._student))
        return self._gain()

    def _beats(self, candidate: Candidate, other: Candidate) -> bool:
        _, better = decide(
            lambda examples: self._forward.differences(candidate, other, examples),
            self._valset,
            threshold=0.0,
            width=self._score_range[1] - self._score_range[0],
            confidence=self._confidence,
            first_look=self._first_look,
        )
        return better

    def _gain(self) -> Gain:
        rivals = [each for each in self._entrants.values() if each.id != self._student.id]
        num_candidates = sum(bool(self._forward.scores(each, self._valset)) for each in rivals)
        after, before = self._paired(self.best, self._student)
        if self.best.id == self._student.id:
            return Gain(num_examples=len(before), num_candidates=num_candidates)
        lost = sum(
            self._forward.is_lost(self.best, name) or self._forward.is_lost(self._student, name)
            for name in self._valset
        )
        stopped_early = len(before) + lost < len(self._valset)
        return Gain.between(
            before,
            after,
            score_range=self._score_range,
            num_candidates=num_candidates,
            num_looks=len(looks(len(self._valset), self._first_look)) if stopped_early else 1,
        )

    def _lead(self, candidate: Candidate, other: Candidate) -> float:
        scores, others = self._paired(candidate, other)
        return fmean(scores) - fmean(others) if scores else 0.0

    def _paired(self, candidate: Candidate, other: Candidate) -> tuple[list[float], list[float]]:
        """Return the scores of two candidates on the validation examples that both have been scored on."""
        scores = self._forward.scores
        both = [name for name in self._valset if scores(candidate, [name]) and scores(other, [name])]
        return scores(candidate, both), scores(other, both)
