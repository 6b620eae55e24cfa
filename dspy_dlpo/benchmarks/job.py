"""What an optimiser of the comparison is given, and what it leaves behind."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import dspy

from dspy_dlpo.benchmarks.tasks.task import Task


class CountedMetric:
    """The task's metric, which counts how often a program was scored.

    Args:
        metric: `(example, prediction, trace=None)`; returns a number or `dspy.Prediction(score, feedback)`.

    Attributes:
        calls: How often it has been called, by whatever thread.
    """

    def __init__(self, metric: Callable[..., Any]) -> None:
        self.calls = 0
        self._metric = metric
        self._lock = threading.Lock()

    def __call__(self, example: dspy.Example, prediction: Any, trace: Any = None) -> Any:
        """Score with feedback."""
        with self._lock:
            self.calls += 1
        if prediction is None:  # SIMBA asks for the score of a program that raised.
            return 0.0
        return self._metric(example, prediction, trace)

    def number(self, example: dspy.Example, prediction: Any, trace: Any = None) -> float:
        """Score without feedback: COPRO and MIPROv2 use none, and to bootstrapping any Prediction is a success."""
        return score_of(self(example, prediction, trace))

    def by_predictor(
        self, example: dspy.Example, prediction: Any, trace: Any = None, predictor: Any = None, calls: Any = None
    ) -> Any:
        """Score as GEPA asks for it. What it asks about one predictor runs no program, and is not counted."""
        if predictor is None:
            return self(example, prediction, trace)
        return self._metric(example, prediction, trace)


def score_of(value: Any) -> float:
    """Return the score a metric gave, with or without feedback."""
    return float(value.score if isinstance(value, dspy.Prediction) else value)


@dataclass(frozen=True)
class Job:
    """What an optimiser is to do.

    Attributes:
        task: Program, examples and metric. The testset is not for optimisers.
        metric: The task's metric, counted. Optimisers call this one.
        lm: Runs the program.
        prompt_lm: Criticises and proposes.
        max_metric_calls: The budget.
        seed: Decides the optimiser's random choices, as far as it lets itself be seeded.
        num_threads: Program runs in flight at once.
    """

    task: Task
    metric: CountedMetric
    lm: dspy.BaseLM
    prompt_lm: dspy.BaseLM
    max_metric_calls: int
    seed: int
    num_threads: int

    @property
    def program(self) -> dspy.Module:
        """A copy of the task's program."""
        return self.task.program.deepcopy()

    @property
    def pool(self) -> list[dspy.Example]:
        """Train and validation examples in a seeded order, for optimisers that know only one set."""
        examples = [*self.task.trainset, *self.task.valset]
        random.Random(self.seed).shuffle(examples)
        return examples


@dataclass(frozen=True)
class Outcome:
    """What an optimiser leaves behind.

    Attributes:
        program: What it returned.
        bests: What it would have returned earlier, by its own record: how many metric calls it had made when a program
            became its best, and the program. Empty where it knows no best before the end.
        plan: The parameters its budget was turned into, and what else is told of the run, as JSON.
    """

    program: dspy.Module
    bests: Sequence[tuple[int, dspy.Module]] = ()
    plan: dict[str, Any] = field(default_factory=dict)


Rival = Callable[[Job], Outcome]
"""An optimiser. It runs with `job.lm` as DSPy's LM. Raises `BudgetTooSmall` before the first call."""
