"""The trial: candidates against the incumbent on the same examples, as few of them as the decision needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from dspy_dlpo.core.records import Candidate
from dspy_dlpo.core.settings import Settings
from dspy_dlpo.core.steps import Threshold, Trial
from dspy_dlpo.descent.statistics import looks, verdict
from dspy_dlpo.runtime.forward import Scores


@dataclass(frozen=True)
class Race:
    """Lets candidates race, and decides whether the winner is accepted.

    The candidates run on the first examples one after another, until one of them is ahead of the incumbent and of its
    threshold. One that asked no model for anything does not end the race: what the models propose runs beside it. Of
    those that pass, the one that gains most for its price then meets the incumbent on as many of the examples as the
    decision needs.

    Args:
        forward: Runs candidates on examples.
        settings: The numbers.
        beside: Names of the sources whose candidates do not end the race.
    """

    forward: Scores
    settings: Settings
    beside: frozenset[str] = frozenset()

    def __call__(
        self,
        incumbent: Candidate,
        entrants: Iterable[tuple[Candidate, Threshold]],
        examples: Callable[[], Sequence[str]],
    ) -> tuple[tuple[float, ...], Trial | None]:
        """Return the mean gain of each candidate that ran in the race, and the trial of the winner, None without any.

        Args:
            incumbent: What the candidates must beat.
            entrants: Candidates, each with what its mean gain must exceed. Those after one that ends the race are not
                asked for.
            examples: Says which those of the trial are, in order, once there is a candidate.

        Raises:
            BudgetSpent: If the budget ends before it is decided.
        """
        ran: list[tuple[Candidate, Threshold]] = []
        gains: list[float] = []
        names: Sequence[str] = ()
        for candidate, threshold in entrants:
            names = names or examples()
            differences = self.forward.differences(candidate, incumbent, names[: self.settings.first_look])
            ran.append((candidate, threshold))
            gains.append(fmean(differences) if differences else 0.0)
            if gains[-1] > max(threshold.level, 0.0) and candidate.source not in self.beside:
                break
        if not ran:
            return (), None
        best = max(range(len(gains)), key=lambda number: self._rank(gains[number], *ran[number]))
        winner, threshold = ran[best]
        paid, accepted = decide(
            lambda more: self.forward.differences(winner, incumbent, more),
            names,
            threshold=threshold.level,
            width=self.settings.width,
            confidence=1 - (1 - self.settings.confidence) / len(gains),  # The winner was picked among several.
            first_look=self.settings.first_look,
        )
        pairs = ((name, self.forward.score(winner, name), self.forward.score(incumbent, name)) for name in names)
        met = tuple(name for name, *scores in pairs if None not in scores)[: len(paid)]
        return tuple(gains), Trial(winner.id, incumbent.id, tuple(paid), len(names), threshold, accepted, met)

    def _rank(self, gain: float, candidate: Candidate, threshold: Threshold) -> tuple[bool, float, bool]:
        """Return what puts a candidate before another: that it passes, its gain less its price, that a model wrote it.

        A floor says only whether it passes: one that must help is not behind for that.
        """
        return gain > threshold.level, gain - threshold.value, candidate.source not in self.beside


def decide(
    differences: Callable[[Sequence[str]], list[float]],
    examples: Sequence[str],
    *,
    threshold: float,
    width: float,
    confidence: float,
    first_look: int,
) -> tuple[list[float], bool]:
    """Pay for examples until it is decided whether the mean paired difference over all of them exceeds the threshold.

    Args:
        differences: Runs candidate and incumbent on examples and returns the paired differences. A pair that was lost
            is left out, and the population is smaller by one.
        examples: All examples of the comparison, in random order.
        threshold: What the mean must exceed.
        width: Width of the score range.
        confidence: See `verdict`.
        first_look: Examples before the first look. The looks depend on the settings alone, never on threads.

    Returns:
        The differences paid for, in order, and the decision: False if every pair was lost.
    """
    paid: list[float] = []
    for start, stop in pairwise([0, *looks(len(examples), first_look)]):
        paid += differences(examples[start:stop])
        lost = stop - len(paid)
        decision = verdict(paid, len(examples) - lost, threshold, width, confidence)
        if decision is not None:
            return paid, decision
    return paid, False
