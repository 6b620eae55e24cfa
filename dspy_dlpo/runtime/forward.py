"""The forward pass: ask for rollouts, each once, and keep the books: ledger, budget, scores."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import reduce
from operator import add
from statistics import fmean
from typing import Protocol

from dspy_dlpo.core.records import Candidate, Rollout
from dspy_dlpo.runtime.budget import Budget
from dspy_dlpo.runtime.data import Data
from dspy_dlpo.runtime.executor import Executor, Runner, Threads, Workers
from dspy_dlpo.runtime.faults import Faults, Outage
from dspy_dlpo.runtime.ledger import Ledger
from dspy_dlpo.runtime.metric import Metric, snapped
from dspy_dlpo.runtime.program import Student
from dspy_dlpo.runtime.rollout import RolloutSettings, Task

_Key = tuple[str, str, int]  # Candidate, example, repeat.


class Scores(Protocol):
    """What the decisions of a run ask for: `Forward`, or scores that are known beforehand."""

    def score(self, candidate: Candidate, example: str) -> float | None:
        """Return the score of a candidate on an example, None if there is none yet."""

    def passes(self, candidate: Candidate, example: str) -> bool:
        """Whether a candidate is known to reach the top score on an example."""

    def is_lost(self, candidate: Candidate, example: str) -> bool:
        """Whether a candidate was run on an example for nothing."""

    def known_scores(self, candidate: Candidate, examples: Iterable[str]) -> list[float]:
        """Return the scores of a candidate on those of the examples that have one; pays for nothing."""

    def pay_for_scores(self, candidate: Candidate, examples: Sequence[str]) -> list[float]:
        """Return the scores of a candidate on examples, paying for those not yet paid; lost ones are left out."""

    def differences(self, candidate: Candidate, other: Candidate, examples: Sequence[str]) -> list[float]:
        """Return the paired differences of score, paying for what is not yet paid; lost pairs are left out."""


class Forward:
    """Runs candidates on examples and scores them, each pair once: what the ledger holds is not paid again.

    A rollout is lost if a language model fails on it in a way that says nothing about the candidate (a dropped
    connection, a rate limit that outlasts the retries of the LM), or if it takes longer than `timeout`. It is charged
    and counted; a resumed run tries it again unless later steps built on its loss.

    Args:
        student: The program.
        metric: The metric.
        examples: All examples, by name.
        ledger: Where every rollout is kept before it is used.
        budget: What is charged for them.
        num_threads: Rollouts in flight at once.
        failure_score: Score of a rollout in which the program or the metric raised.
        num_repeats: Runs of a candidate on each example. From the second on, each has a `rollout_id` of its own, so
            that DSPy's cache does not answer it with the first.
        timeout: Seconds after which a rollout is abandoned; None for never.
        max_lost_share: See `Faults`.
        max_chars: Characters kept of each field of a trace, error or feedback.
        executor: Whose processes run the rollouts; None for threads of this one.

    Attributes:
        lost: Rollouts that were lost.
        errors: Rollouts in which the program or the metric raised.
        max_chars: As given.
    """

    def __init__(
        self,
        student: Student,
        metric: Metric,
        examples: Data,
        *,
        ledger: Ledger,
        budget: Budget,
        num_threads: int,
        failure_score: float,
        num_repeats: int = 1,
        timeout: float | None = None,
        max_lost_share: float = 1.0,
        max_chars: int = 2000,
        executor: Executor | None = None,
    ) -> None:
        self.max_chars = max_chars
        self._examples = examples
        self._ledger = ledger
        self._budget = budget
        self._num_repeats = num_repeats
        self._top_score = metric.score_range[1]
        self._met: dict[_Key, float] = {}
        self._lost: set[_Key] = set()
        self._errors: set[_Key] = set()
        self._score_range = metric.score_range
        self._faults = Faults(max_lost_share)
        settings = RolloutSettings(failure_score, budget.prices, timeout, max_chars)
        self._execute: Runner = (
            Threads(student, metric, settings, num_threads)
            if executor is None
            else Workers(executor, student, metric, settings, num_threads)
        )

    @property
    def lost(self) -> int:
        """How many rollouts were lost."""
        return len(self._lost)

    @property
    def errors(self) -> int:
        """In how many rollouts the program or the metric raised; those that were lost are not among them."""
        return len(self._errors)

    def __call__(self, pairs: Iterable[tuple[Candidate, str]]) -> list[Rollout]:
        """Return the rollout of each pair of a candidate and an example's name, paying for those not yet paid.

        Of several repeats it has the mean score, the words and calls of the worst, and the calls of one that was right.

        Raises:
            BudgetSpent: If the budget cannot pay for all of them: then none is run; or if it ends on the way.
            MetricError: If the metric returns something that is no score.
            dspy.LMError: If a language model fails in a way that no retry can mend.
            Outage: If too many rollouts were lost, or all are refused that were answered before.
        """
        pairs = list(pairs)
        self.pay(pairs)
        repeats = ([self._ledger.rollout(*key) for key in self._keys(*pair)] for pair in pairs)
        return [self._merged([rollout for rollout in each if rollout]) for each in repeats]

    def pay(self, pairs: Iterable[tuple[Candidate, str]]) -> None:
        """Do what a call does, but return nothing; `known_scores` then has the scores."""
        known: dict[_Key, Rollout] = {}
        missing: dict[_Key, Task] = {}
        for candidate, name in pairs:
            for key in self._keys(candidate, name):
                if key in self._met or key in self._lost:
                    continue
                if rollout := self._ledger.rollout(*key):  # Of the run that this one resumes.
                    known[key] = rollout
                elif key not in missing:
                    missing[key] = Task(candidate, name, self._examples[name], key[2])
        if not known and not missing:
            return
        self._budget.check(len(known) + len(missing))
        for key, rollout in known.items():
            self._meet(key, rollout)
        keys = list(missing)

        def keep(index: int, rollout: Rollout) -> None:
            self._ledger.add_rollout(rollout)
            self._meet(keys[index], rollout)
            try:
                self._faults.count(rollout)
            except Outage as outage:
                self._lose(outage.lost)
                raise

        self._execute(list(missing.values()), self._budget.check, keep)

    def score(self, candidate: Candidate, example: str) -> float | None:
        """Return a candidate's mean score on an example, None if this run has not met it or has lost it."""
        met = [self._met[key] for key in self._keys(candidate, example) if key in self._met]
        return snapped(fmean(met), self._score_range) if met else None

    def passes(self, candidate: Candidate, example: str) -> bool:
        """Whether a candidate is known to reach the top score on an example."""
        score = self.score(candidate, example)
        return score is not None and score >= self._top_score

    def rollout(self, candidate: Candidate, example: str) -> Rollout | None:
        """Return the rollout of a candidate on an example if this run has it; pays for nothing."""
        if self.score(candidate, example) is None:
            return None
        found = (self._ledger.rollout(*key) for key in self._keys(candidate, example))
        return self._merged([rollout for rollout in found if rollout])

    def known_scores(self, candidate: Candidate, examples: Iterable[str]) -> list[float]:
        """Return the scores of a candidate on those of the examples that have one; pays for nothing."""
        return [score for name in examples if (score := self.score(candidate, name)) is not None]

    def pay_for_scores(self, candidate: Candidate, examples: Sequence[str]) -> list[float]:
        """Return the scores of a candidate on examples, paying for those not yet paid; lost ones are left out."""
        self.pay([(candidate, example) for example in examples])
        return self.known_scores(candidate, examples)

    def differences(self, candidate: Candidate, other: Candidate, examples: Sequence[str]) -> list[float]:
        """Return the paired differences of score; both sides run at once, and only where they have not yet.

        A pair of which a side is lost is left out.
        """
        self.pay([(each, example) for each in (candidate, other) for example in examples])
        pairs = ((self.score(candidate, name), self.score(other, name)) for name in examples)
        return [mine - its for mine, its in pairs if mine is not None and its is not None]

    def _keys(self, candidate: Candidate, example: str) -> list[_Key]:
        return [(candidate.id, example, repeat) for repeat in range(self._num_repeats)]

    def is_lost(self, candidate: Candidate, example: str) -> bool:
        """Whether this run has lost every rollout of a candidate on an example."""
        return all(key in self._lost for key in self._keys(candidate, example))

    def _meet(self, key: _Key, rollout: Rollout) -> None:
        if rollout.lost:
            self._lost.add(key)
        else:
            self._met[key] = rollout.score
            if rollout.error:
                self._errors.add(key)
        self._budget.charge(rollout.spent)

    def _lose(self, rollouts: Iterable[Rollout]) -> None:
        """Let rollouts count as lost that counted as failures of the program; a resumed run tries them again."""
        for rollout in rollouts:
            key = rollout.candidate, rollout.example, rollout.repeat
            self._met.pop(key, None)
            self._errors.discard(key)
            self._lost.add(key)
            self._ledger.unsettle(rollout.candidate, rollout.example)

    def _merged(self, repeats: Sequence[Rollout]) -> Rollout:
        kept = [rollout for rollout in repeats if not rollout.lost] or repeats
        worst = min(kept, key=lambda rollout: rollout.score)
        right = next((each.calls for each in kept if each.score >= self._top_score > worst.score), ())
        spent = reduce(add, (rollout.spent for rollout in repeats))
        score = snapped(fmean(each.score for each in kept), self._score_range)
        return replace(worst, score=score, spent=spent, right_calls=right)
