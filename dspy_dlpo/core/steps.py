"""What came of the data that flows: the trial of a candidate, the record of a step, and what a run was made with.

As the rest of it, plain and frozen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from dspy_dlpo.core.records import Candidate, Refusal, Rollout, Spending, TextualGradient, UpdateRequest


@dataclass(frozen=True)
class Threshold:
    """What the mean paired gain must exceed, and the numbers it was made from.

    Attributes:
        value: The sum of what the policies ask.
        because: Their numbers, by name.
        floor: A loss beyond which nothing is accepted, whatever the sum; None for no such loss.
    """

    value: float = 0.0
    because: Mapping[str, Any] = field(default_factory=dict)
    floor: float | None = None

    @property
    def level(self) -> float:
        """The sum, but not below the floor."""
        return self.value if self.floor is None else max(self.value, self.floor)

    def __add__(self, other: Threshold) -> Threshold:
        floor = max((each.floor for each in (self, other) if each.floor is not None), default=None)
        return Threshold(self.value + other.value, {**self.because, **other.because}, floor)


@dataclass(frozen=True)
class Trial:
    """A candidate against the incumbent on the same examples.

    Attributes:
        candidate: Id of the candidate.
        incumbent: Id of the one it was compared with.
        differences: Score of the candidate minus score of the incumbent, one number an example.
        population: Number of examples from which these were drawn without replacement.
        threshold: What the mean difference had to exceed.
        accepted: Whether it did, as far as the test could tell.
        examples: The example of each difference.
    """

    candidate: str
    incumbent: str
    differences: tuple[float, ...]
    population: int
    threshold: Threshold
    accepted: bool
    examples: tuple[str, ...] = ()

    @property
    def gain(self) -> float:
        """The mean paired difference, on the metric's scale; 0 without examples."""
        return sum(self.differences) / len(self.differences) if self.differences else 0.0


class Outcome(StrEnum):
    """What came of a step."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    PERFECT_MINIBATCH = "perfect minibatch"
    MINIBATCH_LOST = "minibatch lost"
    NO_GRADIENT = "no gradient"
    NO_USABLE_EDIT = "no usable edit"
    CUT_SHORT = "cut short"  # By a limit, by Ctrl-C or by a `STOP` file: the run's end says by what.


@dataclass(frozen=True)
class StepRecord:
    """Everything one step did.

    Attributes:
        step: Index from 0.
        incumbent: Id of the candidate the step started from.
        minibatch: The examples it started from, without those that were lost; the last steps have none.
        loss: Mean loss of the incumbent there, `top of score_range - score`; 0 without any.
        top_score: The top of `score_range`.
        failures: The rollouts there that fell short of the top score, without what they cost: what the gradients were
            made from.
        gradients: One for each predictor that the critic had something to say about.
        remarks: What the backward pass met besides, with counts: rollouts without a trace, predictors that never ran,
            replies that praise everything or speak of inputs that do not exist, points and calls left out.
        requests: What the proposer was asked, policies included, by predictor.
        candidates: The candidates that passed all constraints.
        refusals: What critic and proposer wrote and the rules kept out of the candidates.
        race: Mean gain on the first examples of the trial, for each candidate up to the first that was ahead.
        trial: The winner's comparison with the incumbent; None if nothing came to it.
        skipped: Why no trial took place; None if one did. `outcome` is what to show.
        best: Id of the best candidate on the valset after the step.
        best_score: Its mean score on the validation examples it was scored on.
        student_score: Mean score of the student on the same examples.
        best_examples: On how many of them that is; 0 if that is not known.
        unparsed: Critic and proposer calls so far without a usable reply, even when asked for again.
        lost: Rollouts lost by the end of the step to failing language models or the time limit.
        errors: Rollouts by the end of the step in which the program or the metric raised; they score `failure_score`.
        spent: What the run had cost by the end of the step.
    """

    step: int
    incumbent: str
    minibatch: tuple[str, ...]
    loss: float
    top_score: float = 1.0
    failures: tuple[Rollout, ...] = ()
    gradients: tuple[TextualGradient, ...] = ()
    remarks: Mapping[str, int] = field(default_factory=dict)
    requests: tuple[UpdateRequest, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    race: tuple[float, ...] = ()
    trial: Trial | None = None
    skipped: Outcome | None = None
    best: str = ""
    best_score: float = 0.0
    student_score: float = 0.0
    best_examples: int = 0
    unparsed: int = 0
    lost: int = 0
    errors: int = 0
    spent: Spending = field(default_factory=Spending)

    @property
    def score(self) -> float:
        """Mean score of the incumbent on the minibatch."""
        return self.top_score - self.loss

    @property
    def outcome(self) -> Outcome:
        """What came of the step."""
        if self.trial is None:
            return self.skipped or Outcome.NO_USABLE_EDIT
        return Outcome.ACCEPTED if self.trial.accepted else Outcome.REFUSED

    @property
    def accepted(self) -> bool:
        """Whether the step moved the incumbent."""
        return self.outcome is Outcome.ACCEPTED

    @property
    def temperature(self) -> float | None:
        """Temperature of the decision, on the metric's scale; None without a trial or without annealing."""
        return self.trial.threshold.because.get("temperature") if self.trial else None

    @property
    def max_edits(self) -> int | None:
        """Most sentences that a candidate could edit in one predictor; None if nothing limited them."""
        caps = [request.max_edits for request in self.requests]
        return None if None in caps else max((cap for cap in caps if cap is not None), default=None)

    def numbers(self) -> dict[str, float]:
        """Return the figures of the step by name, for trackers; those that it does not have are left out."""
        return {name: float(number) for name, number in self.figures().items() if number is not None}

    def figures(self) -> dict[str, float | None]:
        """Return the figures of the step by name, for tables: every step has the same names, in the same order."""
        trial = self.trial
        return {
            "score": self.score if self.minibatch else None,
            "loss": self.loss if self.minibatch else None,
            "best_score": self.best_score,
            "best_examples": self.best_examples or None,
            "num_candidates": len(self.candidates),
            "accepted": None if trial is None else trial.accepted,
            "trial_gain": None if trial is None else trial.gain,
            "trial_examples": None if trial is None else len(trial.differences),
            "threshold": None if trial is None else trial.threshold.level,
            "temperature": self.temperature,
            "max_edits": self.max_edits,
            **self.spent.figures(),
            "unparsed": self.unparsed,
            "lost": self.lost,
            "errors": self.errors,
            "empty_replies": self.spent.empty_replies,
            "cut_off_replies": self.spent.cut_off_replies,
        }


@dataclass(frozen=True)
class Session:
    """One call of `compile` for a run; a run that was resumed had several.

    Attributes:
        started: When it began, as ISO 8601 has it, with the offset of the local time.
        steps: Steps that earlier sessions had completed.
        paid: What earlier sessions had paid, steps that did not end included.
        seconds: How long it took by the clock; None if its process was killed, or goes on.
        error: The exception that ended it, empty if none did.
    """

    started: str
    steps: int = 0
    paid: Spending = field(default_factory=Spending)
    seconds: float | None = None
    error: str = ""


@dataclass(frozen=True)
class RunInfo:
    """What a run was made with, as plain data.

    Attributes:
        student: The instructions it started from.
        settings: The optimiser's arguments by name; models, functions and policies as text, without keys.
        versions: Of `dspy_dlpo`, `dspy` and `python`.
        program: State of the student's predictors, as `dspy.Module.dump_state` gives it, without language models.
        program_name: Name of the program's class.
        num_train: Train examples.
        num_val: Validation examples.
        held_out: Where the valset is from: `given`, `part of the trainset`, or `the trainset itself`.
        num_steps: Most steps; None for no limit.
        models: Names of the language models of the `program`, the `proposer` and the `critic`.
        valset: Names of the validation examples.
        sessions: The calls of `compile` so far, the latest last.
    """

    student: Candidate
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    program: Mapping[str, Any]
    program_name: str
    num_train: int
    num_val: int
    held_out: str
    num_steps: int | None = None
    models: Mapping[str, str] = field(default_factory=dict)
    valset: tuple[str, ...] = ()
    sessions: tuple[Session, ...] = field(default=(), compare=False)  # Of the same run made twice they differ.
