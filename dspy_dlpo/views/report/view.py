"""What the page shows of a run, put together from its records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

from dspy_dlpo.core.edits import Edit
from dspy_dlpo.core.records import Candidate, Demo, Spending
from dspy_dlpo.core.steps import StepRecord
from dspy_dlpo.descent.origins import Origin, provenance
from dspy_dlpo.descent.outcome import RunResult
from dspy_dlpo.views.words import plural

Mark = Literal["accepted", "refused", "skipped"]


@dataclass(frozen=True)
class DiffLine:
    """A line of a diff by sentence: a sentence with why it changed, or how many are left out."""

    kind: Literal["kept", "removed", "added", "folded"]
    text: str
    reason: str = ""


@dataclass(frozen=True)
class CandidateView:
    """A candidate of a step.

    Attributes:
        candidate: The candidate.
        came_to: What came of it: `accepted`, `refused`, `lost the race`, or `not compared`.
        gain: Its mean gain: of the trial if it got there, else of the race; None if it did not get that far.
        race: Its mean gain in the race; None if it did not get that far.
        diffs: Its changes, by predictor.
    """

    candidate: Candidate
    came_to: str
    gain: float | None
    race: float | None
    diffs: Mapping[str, Sequence[DiffLine]]

    @property
    def changes(self) -> str:
        """How many sentences it adds, deletes, modifies and moves, in signs, and how many demos it has."""
        edits = [edit.op for edits in self.candidate.edits.values() for edit in edits]
        signs = {"add": "+", "delete": "−", "replace": "~", "move": "↕"}
        counts = [f"{sign}{edits.count(op)}" for op, sign in signs.items() if op in edits]
        demos = sum(map(len, self.candidate.demos.values()))
        return " ".join([*counts, *([plural(demos, "demo")] if demos else [])])


@dataclass(frozen=True)
class StepView:
    """A step.

    Attributes:
        record: Its record.
        outcome: What came of it.
        spent: What it cost alone; the first includes what came before it.
        candidates: Its candidates.
    """

    record: StepRecord
    outcome: Mark
    spent: Spending
    candidates: tuple[CandidateView, ...]

    @property
    def number(self) -> int:
        """Its number as people count."""
        return self.record.step + 1

    @property
    def score(self) -> float | None:
        """Mean score of the incumbent on the minibatch; None if all of it was lost."""
        return self.record.score if self.record.minibatch else None

    @property
    def loss(self) -> float | None:
        """Mean loss there; None if all of it was lost."""
        return self.record.loss if self.record.minibatch else None

    @property
    def temperature(self) -> float | None:
        """The temperature of its decision; None if it came to none, or without annealing."""
        return self.record.temperature

    @property
    def max_edits(self) -> int | None:
        """Most sentences that a candidate could edit in one predictor; None if nothing limited them."""
        return self.record.max_edits

    @property
    def predictors(self) -> tuple[str, ...]:
        """The predictors that were criticised or changed."""
        changed = (name for each in self.candidates for name in each.diffs)
        return tuple(dict.fromkeys([*(each.predictor for each in self.record.gradients), *changed]))


@dataclass(frozen=True)
class Visit:
    """A place on the walk: an incumbent, and what was tried from there and refused.

    Attributes:
        candidate: The incumbent.
        step: The step that accepted it; None for the student.
        via: How that step saw it; None for the student.
        score: Its mean score on the valset; None if it was not scored.
        num_examples: On how many examples.
        is_best: Whether the run returned it.
        refused: What was tried and refused, with the steps.
    """

    candidate: Candidate
    step: StepView | None
    via: CandidateView | None
    score: float | None
    num_examples: int
    is_best: bool
    refused: list[tuple[StepView, CandidateView]] = field(default_factory=list)


@dataclass(frozen=True)
class PromptView:
    """The final instruction of a predictor.

    Attributes:
        predictor: Its path.
        before: The student's instruction.
        text: The instruction.
        origins: Its sentences, with where they came from.
        demos: The demos that the run put behind the student's own.
    """

    predictor: str
    before: str
    text: str
    origins: tuple[Origin, ...]
    demos: tuple[Demo, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether the run changed it."""
        return self.text != self.before


def step_views(result: RunResult) -> list[StepView]:
    """Return the steps."""
    views, before = [], Spending()
    for record in result.history:
        outcome: Mark = "accepted" if record.accepted else "refused" if record.trial else "skipped"
        candidates = tuple(_candidate_view(record, number) for number in range(len(record.candidates)))
        views.append(StepView(record, outcome, _since(before, record.spent), candidates))
        before = record.spent
    return views


def visits(result: RunResult, steps: Sequence[StepView]) -> list[Visit]:
    """Return the walk from the student through the incumbents, each with what was refused there."""
    sizes = zip(result.val_aggregate_scores, result.num_val_examples, strict=True)
    scores = {candidate.id: found for candidate, found in zip(result.candidates, sizes, strict=True)}
    best = result.candidates[result.best_idx].id

    def visit(candidate: Candidate, step: StepView | None, via: CandidateView | None) -> Visit:
        score, size = scores.get(candidate.id, (None, 0))
        return Visit(candidate, step, via, score, size, candidate.id == best)

    walk = [visit(result.run.student, None, None)]
    for step in steps:
        walk[-1].refused.extend((step, each) for each in step.candidates if each.came_to != "accepted")
        walk.extend(visit(each.candidate, step, each) for each in step.candidates if each.came_to == "accepted")
    return walk


def prompts(result: RunResult) -> list[PromptView]:
    """Return the final instructions."""
    before = result.run.student.instructions
    return [
        PromptView(name, before[name], text, provenance(result, name), tuple(result.best.demos.get(name, ())))
        for name, text in result.best_candidate.items()
    ]


@dataclass(frozen=True)
class ExampleView:
    """A validation example: the scores of student and chosen candidate on it, None where it was not scored."""

    name: str
    before: float | None
    after: float | None

    @property
    def change(self) -> float | None:
        """What was gained there."""
        return None if self.before is None or self.after is None else self.after - self.before


def val_examples(result: RunResult) -> list[ExampleView]:
    """Return the validation examples that were scored, the worst after the run first."""
    if not result.val_subscores:
        return []
    before, after = result.val_subscores[0], result.val_subscores[result.best_idx]
    names = dict.fromkeys([*after, *before])
    views = [ExampleView(name, before.get(name), after.get(name)) for name in names]
    return sorted(views, key=lambda view: (view.after is None, view.after, view.before or 0))


def diff(sentences: Sequence[str], edits: Sequence[Edit]) -> list[DiffLine]:
    """Return edits as lines, with one kept sentence before and after each change; the others are folded."""
    behind: dict[int, list[DiffLine]] = {}
    for edit in edits:
        if edit.op == "add":
            behind.setdefault(edit.at, []).append(DiffLine("added", edit.text, edit.reason))
        elif edit.op == "move":
            behind.setdefault(edit.to, []).append(DiffLine("added", sentences[edit.at], edit.reason or "moved"))
    gone = {edit.at: edit for edit in edits if edit.op != "add"}
    lines = behind.get(-1, [])
    for index, sentence in enumerate(sentences):
        change = gone.get(index)
        reason = change.reason if change and change.op == "delete" else ""  # That of others is at the new sentence.
        lines.append(DiffLine("removed" if change else "kept", sentence, reason))
        if change and change.op == "replace":
            lines.append(DiffLine("added", change.text, change.reason))
        lines += behind.get(index, [])
    return list(_folded(lines))


def _folded(lines: Sequence[DiffLine]) -> Iterator[DiffLine]:
    done = 0
    for kept, group in groupby(lines, key=lambda line: line.kind == "kept"):
        run = list(group)
        start, end = bool(done), done + len(run) < len(lines)  # Whether a change stands before it, and behind it.
        done += len(run)
        if kept and (hidden := len(run) - start - end) > 0:
            run[start : len(run) - end] = [DiffLine("folded", f"{hidden} unchanged")]
        yield from run


def _candidate_view(record: StepRecord, number: int) -> CandidateView:
    candidate, trial = record.candidates[number], record.trial
    race = record.race[number] if number < len(record.race) else None
    came_to, gain = "not compared" if race is None else "lost the race", race
    if trial and trial.candidate == candidate.id:
        came_to, gain = "accepted" if trial.accepted else "refused", trial.gain
    sentences = {request.predictor: request.sentences for request in record.requests}
    diffs = {name: diff(sentences[name], edits) for name, edits in candidate.edits.items() if edits}
    return CandidateView(candidate, came_to, gain, race, diffs)


def _since(before: Spending, after: Spending) -> Spending:
    return Spending(
        after.metric_calls - before.metric_calls,
        after.lm_calls - before.lm_calls,
        after.input_tokens - before.input_tokens,
        after.output_tokens - before.output_tokens,
        after.seconds - before.seconds,
        None if before.cost is None or after.cost is None else after.cost - before.cost,
    )
