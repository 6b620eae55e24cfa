"""Where a run stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dspy_dlpo.core.records import Candidate
from dspy_dlpo.core.steps import StepRecord
from dspy_dlpo.descent.choice import Choice
from dspy_dlpo.descent.statistics import Gain
from dspy_dlpo.policies.base import State


@dataclass
class Walk:
    """The state of a run: the incumbent walks, `choice` keeps the best on the valset apart.

    Attributes:
        student: What the run started from.
        incumbent: The candidate that the next step starts from.
        choice: The best so far on the valset.
        state: The state of the policies.
        seen: Every candidate so far, by id, as it was first made.
        position: Train examples gone through, over all epochs.
        history: The steps so far.
        num_metric_calls: Metric calls made by the end of the last step.
        num_gains: How often, by then, a new candidate was ahead of the best on the valset.
        num_idle: Steps in a row that made no metric call.
        num_without_gain: Steps in a row after which the best on the valset was none that is better.
        stopped: Why the run ended; empty while it goes on.
        gain: The gain that was reported in the end.
    """

    student: Candidate
    incumbent: Candidate
    choice: Choice
    state: State
    seen: dict[str, Candidate] = field(default_factory=dict)
    position: int = 0
    history: list[StepRecord] = field(default_factory=list)
    num_metric_calls: int = 0
    num_gains: int = 0
    num_idle: int = 0
    num_without_gain: int = 0
    stopped: str = ""
    gain: Gain = field(default_factory=Gain)

    @classmethod
    def start(cls, student: Candidate, choice: Choice, state: State) -> Walk:
        """Return the walk before its first step."""
        return cls(student, student, choice, state, {student.id: student})

    @property
    def incumbents(self) -> list[Candidate]:
        """The incumbents so far, the student first."""
        ids = dict.fromkeys([self.student.id, *(record.incumbent for record in self.history), self.incumbent.id])
        return [self.seen[each] for each in ids]

    @property
    def tried(self) -> set[str]:
        """Ids of the candidates that were compared with an incumbent, or were one: they are not paid for again."""
        ran = {each.id for record in self.history for each in record.candidates[: len(record.race)]}
        return ran | {each.id for each in self.incumbents}

    def meet(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Remember candidates, and return those that were not seen before."""
        new = [candidate for candidate in candidates if candidate.id not in self.seen]
        self.seen |= {candidate.id: candidate for candidate in new}  # Its first parent is where it came from.
        return new

    def accept(self, candidate: str, *, is_ahead: bool) -> None:
        """Move to a candidate, and let it meet the best on the valset.

        Args:
            candidate: Its id.
            is_ahead: Whether it did better than the incumbent, not only well enough.

        Raises:
            BudgetSpent: If the budget ends before it is decided whether it is the best.
        """
        self.incumbent = self.seen[candidate]
        self.choice.enter(self.incumbent, is_ahead=is_ahead)

    def close(self, record: StepRecord, state: State) -> None:
        """Take a completed step in, and the state of the policies after it."""
        self.history.append(record)
        self.state = state
        self.num_idle = self.num_idle + 1 if record.spent.metric_calls == self.num_metric_calls else 0
        self.num_without_gain = self.num_without_gain + 1 if self.choice.num_gains == self.num_gains else 0
        self.num_metric_calls, self.num_gains = record.spent.metric_calls, self.choice.num_gains
