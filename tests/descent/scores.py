"""Scores that are known beforehand, in place of a program that runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dspy_dlpo.core.records import Candidate
from dspy_dlpo.core.settings import Settings
from dspy_dlpo.runtime.budget import BudgetSpent


def names(number: int, kind: str = "train") -> list[str]:
    return [f"{kind}:{index}" for index in range(number)]


def settings(**given: Any) -> Settings:
    """Return settings of a small run, with some numbers given."""
    defaults: dict[str, Any] = {
        "trainset": names(20),
        "valset": names(12, "val"),
        "num_steps": None,
        "batch_size": 4,
        "num_candidates": 2,
        "max_trial_examples": 4,
        "max_passing": 1,
        "score_range": (0.0, 1.0),
        "confidence": 0.95,
        "seed": 0,
    }
    return Settings(**{**defaults, **given})


class KnownScores:
    """Stands for `Forward`: gives known scores, each of which costs one call of a budget.

    Args:
        scores: One digit an example for each candidate; `-` is an example on which it is lost.
        examples: Their names.
        num_calls: What the budget pays for.

    Attributes:
        paid: What was paid for, in order.
    """

    def __init__(self, scores: Mapping[Candidate, str], examples: Sequence[str], num_calls: int = 999) -> None:
        self._all = {
            (candidate.id, name): None if digit == "-" else float(digit)
            for candidate, digits in scores.items()
            for name, digit in zip(examples, digits, strict=True)
        }
        self._num_calls = num_calls
        self.paid: list[tuple[str, str]] = []

    def num_paid(self, candidate: Candidate) -> int:
        return sum(each == candidate.id for each, _ in self.paid)

    def pay_for_scores(self, candidate: Candidate, examples: Sequence[str]) -> list[float]:
        missing = [(candidate.id, name) for name in examples if (candidate.id, name) not in self.paid]
        if len(self.paid) + len(missing) > self._num_calls:
            raise BudgetSpent("the budget is spent")  # As `Forward` does, before any of them is run.
        self.paid += missing
        return self.known_scores(candidate, examples)

    def score(self, candidate: Candidate, example: str) -> float | None:
        key = candidate.id, example
        return self._all[key] if key in self.paid else None

    def passes(self, candidate: Candidate, example: str) -> bool:
        return self.score(candidate, example) == 1.0

    def known_scores(self, candidate: Candidate, examples: Iterable[str]) -> list[float]:
        return [score for name in examples if (score := self.score(candidate, name)) is not None]

    def differences(self, candidate: Candidate, other: Candidate, examples: Sequence[str]) -> list[float]:
        self.pay_for_scores(candidate, examples)
        self.pay_for_scores(other, examples)
        pairs = [(self.score(candidate, name), self.score(other, name)) for name in examples]
        return [mine - its for mine, its in pairs if mine is not None and its is not None]

    def is_lost(self, candidate: Candidate, example: str) -> bool:
        key = candidate.id, example
        return key in self.paid and self._all[key] is None
