"""The data that flows through a step, one way: Rollout, TextualGradient, UpdateRequest, Candidate.

All of it is plain and frozen, so that it can be kept in the ledger as JSON and read back. `steps.py` has what a step
made of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from dspy_dlpo.core.edits import Edit


@dataclass(frozen=True, repr=False)
class Spending:
    """What something cost.

    Attributes:
        metric_calls: Runs of the program on one example, each followed by the metric.
        lm_calls: Requests answered by a language model; answers from DSPy's cache are free and not counted.
        input_tokens: Tokens sent, as the models reported them.
        output_tokens: Tokens received.
        seconds: Time during which it ran. Calls in parallel add up.
        cost: Dollars; None if the price of any call is unknown, which is not the same as 0.
        empty_replies: Replies of a language model that held nothing.
        cut_off_replies: Replies that ended at the limit of their length.
    """

    metric_calls: int = 0
    lm_calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0
    cost: float | None = 0.0
    empty_replies: int = 0
    cut_off_replies: int = 0

    @property
    def tokens(self) -> int:
        """Tokens sent and received."""
        return self.input_tokens + self.output_tokens

    def figures(self) -> dict[str, float | None]:
        """Return the counts and the dollars by name; None for dollars that are not known."""
        return {
            "metric_calls": self.metric_calls,
            "lm_calls": self.lm_calls,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "cost": self.cost,
        }

    def __repr__(self) -> str:
        cost = "cost unknown" if self.cost is None else f"${self.cost:.4g}"
        return f"Spending({self.metric_calls} metric calls, {self.lm_calls} LM calls, {self.tokens} tokens, {cost})"

    def __add__(self, other: Spending) -> Spending:
        return Spending(
            self.metric_calls + other.metric_calls,
            self.lm_calls + other.lm_calls,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.seconds + other.seconds,
            None if self.cost is None or other.cost is None else self.cost + other.cost,
            self.empty_replies + other.empty_replies,
            self.cut_off_replies + other.cut_off_replies,
        )


@dataclass(frozen=True)
class Call:
    """One call of a predictor inside a rollout, as text.

    Attributes:
        predictor: Its `named_predictors()` path; None for a predictor the program made on the fly.
        inputs: Value of each input field, shortened to the character limit of the run.
        outputs: Value of each output field; empty if the call failed.
        error: What was wrong with the reply, if the call failed.
        sources: For each input that came from other calls, their indices in the rollout.
        returned: Whether an output stands in what the program returned.
    """

    predictor: str | None
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    error: str = ""
    sources: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    returned: bool = False


@dataclass(frozen=True)
class Rollout:
    """One run of a candidate on one example, scored.

    Attributes:
        candidate: Id of the candidate.
        example: `train:INDEX` or `val:INDEX`.
        score: The metric's score, higher is better; `failure_score` if the program or the metric raised.
        feedback: The metric's words, empty if it gave none.
        error: The error that ended the run, empty if none did.
        calls: The predictor calls in the order in which they began.
        spent: What the run cost, calls of language models inside the metric included.
        repeat: Which of the runs of this candidate on this example it is, from 0.
        lost: Whether a failing language model or the time limit ended it: then it says nothing about the candidate.
        refused: Whether a language model refused a request of it, as with a status of 400. It counts as a failure of
            the program, unless nothing but refusals follow.
        num_calls: How many predictor calls there were; of very many, not all are kept.
        predictor_feedback: The metric's words on single predictors, by path, where they differ from `feedback`.
        strangers: What to call the predictors that ran and are none of the program's.
        unsent: Predictors that ran though their instruction stood in no prompt.
        right_calls: Of several runs on the example of which this is the worst, the calls of one that reached the top
            score; empty if none did.
    """

    candidate: str
    example: str
    score: float
    feedback: str = ""
    error: str = ""
    calls: tuple[Call, ...] = ()
    spent: Spending = Spending()
    repeat: int = 0
    lost: bool = False
    refused: bool = False
    num_calls: int = 0
    predictor_feedback: Mapping[str, str] = field(default_factory=dict)
    strangers: tuple[str, ...] = ()
    unsent: tuple[str, ...] = ()
    right_calls: tuple[Call, ...] = ()


@dataclass(frozen=True)
class Point:
    """One thing an instruction should change.

    Attributes:
        text: It, in the critic's words.
        examples: The failing examples behind it.
        past: Its weight from earlier steps.
        is_loose: Whether the critic wrote it without the form that was asked for: it may be a requirement, a refusal or
            an apology, so a candidate with it must be better on the trial, not merely no worse.
    """

    text: str
    examples: tuple[str, ...]
    past: float = 0.0
    is_loose: bool = False

    @property
    def weight(self) -> int:
        """The number of examples behind it in this step, plus what remains of earlier steps, rounded."""
        return round(len(self.examples) + self.past)


@dataclass(frozen=True)
class TextualGradient:
    """What the critic says the instruction of one predictor should change.

    Attributes:
        predictor: Its path.
        points: What should change, the most frequent first.
        blame: Share of the minibatch's failing rollouts for which the critic blamed this instruction.
    """

    predictor: str
    points: tuple[Point, ...]
    blame: float = 0.0


@dataclass(frozen=True)
class Contrast:
    """What set two instructions of one predictor apart: the sentences only the better one had, and only the worse.

    `gain` is the mean paired difference of their scores.
    """

    better: tuple[str, ...]
    worse: tuple[str, ...]
    gain: float


@dataclass(frozen=True)
class UpdateRequest:
    """What the proposer is asked for one predictor; policies narrow it before it is sent.

    Attributes:
        predictor: Path of the predictor.
        sentences: The units of its instruction; joined they are the instruction.
        gradient: What should change.
        max_edits: Edits a candidate may hold; None is no limit.
        max_tokens: Tokens the instruction may have; None is no limit.
        frozen: Indices of sentences that must stay verbatim.
        memory: Points of earlier steps that still count, the heaviest first.
        contrasts: What set better instructions of this predictor apart from worse ones.
        passing: Calls of this predictor in rollouts that went well.
        directives: Further wishes, in words.
    """

    predictor: str
    sentences: tuple[str, ...]
    gradient: TextualGradient
    max_edits: int | None = None
    max_tokens: int | None = None
    frozen: frozenset[int] = frozenset()
    memory: tuple[Point, ...] = ()
    contrasts: tuple[Contrast, ...] = ()
    passing: tuple[str, ...] = ()
    directives: tuple[str, ...] = ()

    def narrowed(
        self,
        *,
        max_edits: int | None = None,
        max_tokens: int | None = None,
        frozen: frozenset[int] = frozenset(),
        directives: Sequence[str] = (),
    ) -> UpdateRequest:
        """Return the request with more limits: the smaller cap holds, frozen sentences and directives add up."""
        return replace(
            self,
            max_edits=_smaller(self.max_edits, max_edits),
            max_tokens=_smaller(self.max_tokens, max_tokens),
            frozen=self.frozen | frozen,
            directives=tuple(sorted({*self.directives, *directives})),
        )


def _smaller(one: int | None, other: int | None) -> int | None:
    return min((cap for cap in (one, other) if cap is not None), default=None)


@dataclass(frozen=True)
class Demo:
    """A worked example in a prompt: what a predictor was given, and what it should answer.

    Attributes:
        example: Name of the train example that it is from.
        fields: Value of each field, as JSON.
        augmented: Whether it is a call of the program that went right; else the labels of the example. DSPy's word.
    """

    example: str
    fields: Mapping[str, Any]
    augmented: bool = False


@dataclass(frozen=True)
class Candidate:
    """The parameters of all predictors that may be optimised, and how they came about.

    Attributes:
        instructions: Text of each predictor, by path.
        parent: Id of the incumbent it was made from; None for the student.
        edits: For each predictor whose instruction moved, the edits made to that of the parent.
        demos: Demos of each predictor behind those that the student has itself.
        source: Name of the source that proposed it; empty for the student.
    """

    instructions: Mapping[str, str]
    parent: str | None = None
    edits: Mapping[str, tuple[Edit, ...]] = field(default_factory=dict)
    demos: Mapping[str, tuple[Demo, ...]] = field(default_factory=dict)
    source: str = ""

    @cached_property
    def id(self) -> str:
        """A hash of all parameters: equal parameters are one candidate, whichever way they came about."""
        parameters: Any = dict(self.instructions)
        if any(self.demos.values()):
            demos = {name: [dict(demo.fields) for demo in each] for name, each in self.demos.items() if each}
            parameters = [parameters, demos]
        return hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()[:16]

    def __hash__(self) -> int:
        return hash(self.id)


@dataclass(frozen=True)
class Refusal:
    """A text that was kept out of the candidates of a step.

    Attributes:
        rule: Name of the rule that it broke.
        text: The text, or its beginning. Empty for the others of this rule, where there were many.
        predictor: The predictor whose instruction it was for.
        times: How many equal texts there were; of an empty one, how many texts.
    """

    rule: str
    text: str
    predictor: str
    times: int = 1
