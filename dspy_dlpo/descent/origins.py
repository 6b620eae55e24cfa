"""Where each sentence of an instruction came from: the step, the edit, and the complaints and examples behind it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from dspy_dlpo.core.edits import Edit, growth
from dspy_dlpo.core.records import Candidate, Point
from dspy_dlpo.core.sentences import split
from dspy_dlpo.core.steps import StepRecord
from dspy_dlpo.descent.outcome import RunResult
from dspy_dlpo.descent.sources.shared_feedback import SharedFeedback


@dataclass(frozen=True)
class Removal:
    """What leaving out a sentence did, where a step of the run tried that and nothing else.

    Attributes:
        step: Index of the step; of several, the last.
        difference: Mean score without the sentence minus mean score with it, on the metric's scale.
        num_examples: On how many examples.
    """

    step: int
    difference: float
    num_examples: int


@dataclass(frozen=True)
class Origin:
    """One sentence of an instruction, and how it came there.

    Attributes:
        sentence: The sentence with the white space around it: joined, the sentences are the instruction.
        step: Index of the step that brought it; None if it is the student's.
        candidate: Id of the candidate that brought it; None if it is the student's.
        edit: The edit that wrote it, with its reason; None if it is the student's.
        points: What the critic said in that step of the instruction: first the point that shares most with the edit.
            Empty where a policy acted of itself; what the metric said where its words became the sentence.
        examples: Names of the failing examples behind these points, in their order.
        earlier: What stood in its place before: the sentence that the edit replaced, what that one had replaced, ...
        removal: What leaving it out did; None if that was not measured.
    """

    sentence: str
    step: int | None = None
    candidate: str | None = None
    edit: Edit | None = None
    points: tuple[Point, ...] = ()
    examples: tuple[str, ...] = ()
    earlier: tuple[str, ...] = ()
    removal: Removal | None = None


def provenance(result: RunResult, predictor: str, candidate: str | None = None) -> tuple[Origin, ...]:
    """Return the sentences of an instruction, each with its origin.

    The edits are followed from the student to the candidate, letter by letter: where a later split joins or cuts
    sentences, a sentence has the origin of most of its letters. A candidate that was made several times counts as that
    of the first step.

    Args:
        result: The run.
        predictor: Path of the predictor.
        candidate: Id of any candidate of the run. Default: the one that was chosen.

    Raises:
        ValueError: If the run has no such predictor or candidate.
    """
    student = result.run.student
    if predictor not in student.instructions:
        raise ValueError(f"`predictor` must be one of {sorted(student.instructions)}, but got {predictor!r}.")
    candidate = candidate or result.candidates[result.best_idx].id
    return origins_of(student, result.history, predictor, candidate)


def origins_of(student: Candidate, history: Sequence[StepRecord], predictor: str, candidate: str) -> tuple[Origin, ...]:
    """Return the same as `provenance`, of a run that may still go on."""
    text = student.instructions[predictor]
    origins, letters = [Origin("")], [0] * _count_letters(text)
    for record, child in _lineage(student, history, candidate):
        if predictor in child.edits:
            letters = _edited(letters, origins, predictor, record, child)
            text = child.instructions[predictor]
    sentences = split(text)
    removals = dict(_removals(history, predictor))
    sources = (origins[_most(each)] for each in _shares(letters, sentences))
    return tuple(
        replace(origin, sentence=sentence, removal=removals.get(sentence.strip()))
        for sentence, origin in zip(sentences, sources, strict=True)
    )


def _lineage(student: Candidate, history: Sequence[StepRecord], candidate: str) -> list[tuple[StepRecord, Candidate]]:
    """Return the candidates on the way from the student to a candidate, each with the step that first made it."""
    made: dict[str, tuple[StepRecord, Candidate]] = {}
    for record in history:
        for each in record.candidates:
            made.setdefault(each.id, (record, each))
    lineage: list[tuple[StepRecord, Candidate]] = []
    current: str | None = candidate
    while current != student.id:
        if current not in made:
            raise ValueError(f"`candidate` must be the id of a candidate of the run, but got {candidate!r}.")
        lineage.append(made[current])
        current = made[current][1].parent
    return lineage[::-1]


def _edited(
    letters: Sequence[int], origins: list[Origin], predictor: str, record: StepRecord, child: Candidate
) -> list[int]:
    """Return the index of the origin of each letter after the edits of a candidate; the list gets the new origins."""
    sentences = _asked(record, predictor)
    old, new = _shares(letters, sentences), list[int]()
    for text, source in growth(sentences, child.edits[predictor]):
        num_letters = _count_letters(text)
        if isinstance(source, int):  # A sentence that was moved into a list has the list's mark before it.
            new += (old[source][:1] * (num_letters - len(old[source])) + old[source])[-num_letters:]
        else:
            earlier: tuple[str, ...] = ()
            if source.op == "replace":
                earlier = (sentences[source.at].strip(), *origins[_most(old[source.at])].earlier)
            is_the_metrics = child.source == SharedFeedback.__name__
            points = _said(record, source) if is_the_metrics else _points(record, predictor, source)
            examples = dict.fromkeys(name for point in points for name in point.examples)
            origins.append(Origin("", record.step, child.id, source, points, tuple(examples), earlier))
            new += [len(origins) - 1] * num_letters
    return new


def _points(record: StepRecord, predictor: str, edit: Edit) -> tuple[Point, ...]:
    """Return what was said of an instruction, first what shares most words with the edit."""
    words = _words(edit.text)

    def shared(point: Point) -> float:
        others = _words(point.text)
        return len(words & others) / max(len(words | others), 1)

    points = (point for each in record.gradients if each.predictor == predictor for point in each.points)
    return tuple(sorted(points, key=shared, reverse=True))


def _said(record: StepRecord, edit: Edit) -> tuple[Point, ...]:
    """Return what the metric itself said, and of which failing examples."""
    told = {each.example: "\n".join([each.feedback, *each.predictor_feedback.values()]) for each in record.failures}
    return (Point(edit.text, tuple(example for example, text in told.items() if edit.text in text)),)


def _asked(record: StepRecord, predictor: str) -> tuple[str, ...]:
    """Return the sentences of the incumbent's instruction, as they were numbered for the edits of this step."""
    return next(request.sentences for request in record.requests if request.predictor == predictor)


def _removals(history: Sequence[StepRecord], predictor: str) -> Iterator[tuple[str, Removal]]:
    """Yield each sentence whose removal alone was compared with the incumbent, and what came of it."""
    for record in history:
        trial = record.trial
        for candidate in record.candidates:
            if trial and trial.differences and candidate.id == trial.candidate and [*candidate.edits] == [predictor]:
                edits = candidate.edits[predictor]
                if [edit.op for edit in edits] == ["delete"]:
                    removal = Removal(record.step, trial.gain, len(trial.differences))
                    yield _asked(record, predictor)[edits[0].at].strip(), removal


def _shares(letters: Sequence[int], sentences: Sequence[str]) -> list[list[int]]:
    """Cut what belongs to the letters of a text where its sentences end."""
    rest = iter(letters)
    return [[next(rest) for _ in range(_count_letters(sentence))] for sentence in sentences]


def _most(origins: Sequence[int]) -> int:
    return Counter(origins or [0]).most_common(1)[0][0]


def _count_letters(text: str) -> int:
    """Count what is not white space, which DSPy changes when it stores an instruction."""
    return sum(map(len, text.split()))


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))
