"""What optimisers are compared on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dspy


@dataclass(frozen=True)
class Task:
    """A program to optimise, its examples and its metric.

    Attributes:
        name: Its name in tables.
        program: The program with a plain instruction: where every optimiser starts.
        human: A careful instruction written by a person, by predictor.
        metric: `(example, prediction, trace=None)`; returns `dspy.Prediction(score, feedback)`, score from 0 to 1.
        trainset: Examples for the optimisers.
        valset: Examples for choosing.
        testset: Examples that no optimiser sees.
    """

    name: str
    program: dspy.Module
    human: Mapping[str, str]
    metric: Callable[..., Any]
    trainset: Sequence[dspy.Example]
    valset: Sequence[dspy.Example]
    testset: Sequence[dspy.Example]
