"""What the valset decides: the best so far, the final choice, and the gain that is reported."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from statistics import fmean
from typing import Any

from dspy_dlpo.core.records import Candidate
from dspy_dlpo.core.settings import Settings
from dspy_dlpo.descent.statistics import Gain, looks
from dspy_dlpo.descent.trial import decide
from dspy_dlpo.runtime.budget import BudgetSpent
from dspy_dlpo.runtime.faults import FATAL
from dspy_dlpo.runtime.forward import Scores


class Choice:
    """Keeps the best candidate on the valset, and chooses in the end.

    Args:
        forward: Runs candidates on examples.
        student: What a run starts from.
        settings: The numbers. Its `valset` is in random order.

    Attributes:
        best: The best so far.
        num_gains: How often a new one was ahead of the best so far, not only as good.
    """

    def __init__(self, forward: Scores, student: Candidate, settings: Settings) -> None:
        self.best = student
        self.num_gains = 0
        self._forward, self._student, self._settings = forward, student, settings
        self._valset = settings.valset
        self._screen = settings.valset[: settings.max_trial_examples]
        self._entrants = {student.id: student}

    @property
    def _last(self) -> Candidate:
        return [*self._entrants.values()][-1]

    def begin(self) -> None:
        """Score the student where the candidates will meet it."""
        self._forward.pay_for_scores(self._student, self._screen)

    def enter(self, candidate: Candidate, *, is_ahead: bool) -> None:
        """Let a new incumbent take the place of the best so far, unless it is worse.

        Args:
            candidate: The incumbent.
            is_ahead: Whether it won on the trainset. One that annealing let pass meets the best at the end.

        Raises:
            BudgetSpent: If the budget ends before that is decided.
        """
        self._entrants.pop(candidate.id, None)
        self._entrants[candidate.id] = candidate  # The last is the incumbent.
        if is_ahead and self._stands(candidate, self._screen):
            self.num_gains += self._lead(candidate, self.best) > 0
            self.best = candidate

    @property
    def standing(self) -> dict[str, Any]:
        """Where the run stands on the valset, as fields of `StepRecord`; a mean score is 0 if all were lost."""
        scores = self._forward.known_scores(self.best, self._valset)
        return {
            "best": self.best.id,
            "best_score": fmean(scores or [0.0]),
            "best_examples": len(scores),
            "student_score": fmean(self._paired(self.best, self._student)[1] or [0.0]),
        }

    @property
    def unpaid(self) -> int:
        """How many examples the final choice will pay for: what student, best and last incumbent miss of theirs."""
        missing = 2 * len(self._valset) - len(self._forward.known_scores(self._student, self._valset))
        if self.best.id != self._student.id:
            missing -= len(self._forward.known_scores(self.best, self._valset))
        return missing + len(self._screen) - len(self._forward.known_scores(self._last, self._screen))

    def conclude(self) -> Gain:
        """Choose among the student and all that were ever incumbent, as far as the budget reaches; return the gain.

        The last incumbent takes the place of the best if it is better where new incumbents meet it; it may be one that
        annealing let pass. Of the others, the one nearest to the best and all that were not behind it then meet it on
        the whole valset, for an early decision may have been wrong. The one that stands is the choice if its mean score
        there is above the student's. Where the budget ends before that is decided, the best stays; before it is paid,
        the examples that are decide.
        """
        with suppress(BudgetSpent, *FATAL):  # An outage goes on here, perhaps.
            self._pay(self._student)
            self._forward.pay_for_scores(self._last, self._screen)
            if self._lead(self._last, self.best) > 0:
                self.best = self._last
            self._pay(self.best)
            for challenger in self._challengers():
                if self._stands(challenger, self._valset):
                    former, self.best = self.best, challenger
                    self._forward.pay_for_scores(challenger, self._valset)  # For that was perhaps decided early.
                    if self._stands(former, self._valset):
                        self.best = former
        if self._lead(self.best, self._student) <= 0:
            self.best = self._student
        return self._gain()

    def _pay(self, candidate: Candidate) -> None:
        """Score a candidate on the whole valset; where the budget ends before, on as much of it as can be paid."""
        names, size = list(self._valset), len(self._valset)
        while names:
            try:
                self._forward.pay_for_scores(candidate, names[:size])
                names = names[size:]
            except BudgetSpent:
                if size == 1:
                    raise
                size //= 2

    def _challengers(self) -> list[Candidate]:
        """Return the candidate nearest to the best where both were scored, and the others not behind it there.

        The nearest come first, the latest of equals; one that was never scored there comes last.
        """
        others = [each for each in self._entrants.values() if each.id not in (self.best.id, self._student.id)]
        leads = {each.id: self._lead(each, self.best) for each in others}
        met = [each for each in reversed(others) if self._forward.known_scores(each, self._valset)]
        met.sort(key=lambda each: -leads[each.id])
        unmet = [each for each in reversed(others) if each not in met]
        return [*met[:1], *(each for each in met[1:] if leads[each.id] >= 0), *unmet]

    def _stands(self, candidate: Candidate, examples: Sequence[str]) -> bool:
        """Whether a candidate is better than the best; of a tie it is the later, which has won on the trainset."""
        order = [*self._entrants]
        is_later = order.index(candidate.id) > order.index(self.best.id)
        one, other = (self.best, candidate) if is_later else (candidate, self.best)
        _, is_ahead = decide(
            lambda more: self._forward.differences(one, other, more),
            examples,
            threshold=0.0,
            width=self._settings.width,
            confidence=self._settings.confidence,
            first_look=max(self._settings.first_look, len(self._paired(candidate, self.best)[0])),
        )
        return is_ahead != is_later

    def _gain(self) -> Gain:
        rivals = [each for each in self._entrants.values() if each.id != self._student.id]
        num_candidates = sum(bool(self._forward.known_scores(each, self._valset)) for each in rivals)
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
            score_range=self._settings.score_range,
            num_candidates=num_candidates,
            num_looks=len(looks(len(self._valset), self._settings.first_look)) if stopped_early else 1,
        )

    def _lead(self, candidate: Candidate, other: Candidate) -> float:
        scores, others = self._paired(candidate, other)
        return fmean(scores) - fmean(others) if scores else 0.0

    def _paired(self, candidate: Candidate, other: Candidate) -> tuple[list[float], list[float]]:
        """Return the scores of two candidates on the validation examples that both have been scored on."""
        scores = self._forward.known_scores
        both = [name for name in self._valset if scores(candidate, [name]) and scores(other, [name])]
        return scores(candidate, both), scores(other, both)
