"""Candidates with other demos: worked examples that DSPy puts into the prompt."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import dspy

from dspy_dlpo.core.plain import jsonable
from dspy_dlpo.core.records import Candidate, Demo, TextualGradient
from dspy_dlpo.descent.requests import Requests
from dspy_dlpo.descent.sources.base import Change, Proposal, Source
from dspy_dlpo.descent.step import Step
from dspy_dlpo.descent.walk import Walk
from dspy_dlpo.runtime.data import Data
from dspy_dlpo.runtime.forward import Forward
from dspy_dlpo.runtime.program import Student

_SPARE = 4  # Demos seen for each that is wanted, before what is there has to do.


class Demos(Source):
    """Proposes demos from what the run has paid for, and from the labels.

    A demo is a call of the predictor in a rollout that reached the top score, or, where there is none for an example,
    its labels. The student's own demos stay, before those of a candidate. A predictor that has room gets a full set at
    once, since one demo more is seldom seen to help on a few examples; then half of the set is drawn anew.

    Args:
        student: Knows the predictors and their own demos.
        data: The examples.
        forward: Knows which rollouts went right.
        requests: Writes requests.
        max_demos: Most demos of a predictor, its own included.

    References:
        Khattab et al., DSPy, arXiv 2310.03714, for demos bootstrapped from a program's own calls. Opsahl-Ong et al.,
        MIPROv2, arXiv 2406.11695, for sets that are chosen together with instructions.
    """

    def __init__(self, student: Student, data: Data, forward: Forward, requests: Requests, *, max_demos: int) -> None:
        self._student = student
        self._data = data
        self._forward = forward
        self._requests = requests
        self._max_demos = max_demos

    def propose(self, step: Step, walk: Walk, so_far: Sequence[Proposal]) -> Iterable[Proposal]:
        """Propose a set of demos for all predictors together, then a second one."""
        for number in range(2):
            changes = []
            for name, predictor in self._student.predictors.items():
                room = self._max_demos - len(predictor.demos)
                request = self._requests(step, TextualGradient(name, ()), walk)
                rng = step.ctx.rng(f"{self.name}/{number}", name)
                demos = self._drawn(name, predictor, room, request.max_edits, step.incumbent, walk, rng)
                if demos != step.incumbent.demos.get(name, ()):
                    changes.append(Change(request, (), demos))
            if changes:
                yield changes

    def _drawn(
        self,
        name: str,
        predictor: dspy.Predict,
        room: int,
        cap: int | None,
        incumbent: Candidate,
        walk: Walk,
        rng: random.Random,
    ) -> tuple[Demo, ...]:
        """Return the demos of a new candidate: those that stay, and new ones behind them, within the cap on edits."""
        kept = list(incumbent.demos.get(name, ()))
        if len(kept) >= room:
            kept = sorted(rng.sample(kept, len(kept) // 2), key=kept.index)
        num_new = room - len(kept) if cap is None else min(room - len(kept), cap)
        used = {demo.example for demo in kept}
        fresh = [name for name in rng.sample(self._data.trainset, len(self._data.trainset)) if name not in used]
        found: list[Demo] = []
        spare: list[Demo] = []
        for demo in self._demos(name, predictor, fresh, [incumbent, *reversed(walk.incumbents)]):
            if len(found) >= num_new or len(spare) >= _SPARE * num_new:
                break
            complete = all(field in demo.fields for field in predictor.signature.output_fields)
            different = not any(_answer(demo, predictor) == _answer(other, predictor) for other in (*kept, *found))
            (found if complete and different else spare).append(demo)
        spare.sort(key=lambda demo: not all(field in demo.fields for field in predictor.signature.output_fields))
        return (*kept, *(found + spare)[:num_new])

    def _demos(
        self, name: str, predictor: dspy.Predict, examples: Sequence[str], candidates: Sequence[Candidate]
    ) -> Iterator[Demo]:
        """Yield one demo for each of the examples that has any, the best that is known."""
        for example in examples:
            fields, augmented = None, False
            for candidate in candidates:
                if self._forward.passes(candidate, example):
                    fields, augmented = self._call(name, predictor, candidate, example), True
                    break
            if fields is None:
                fields, augmented = self._labels(predictor, example), False
            if fields:
                yield Demo(example, fields, augmented)

    def _call(self, name: str, predictor: dspy.Predict, candidate: Candidate, example: str) -> Mapping[str, Any] | None:
        """Return the fields of the last call of a predictor in a rollout, None if it is not kept whole."""
        rollout = self._forward.rollout(candidate, example)
        calls = [call for call in rollout.calls if call.predictor == name and call.outputs] if rollout else []
        if not calls:
            return None
        texts = {**calls[-1].inputs, **calls[-1].outputs}
        if any(len(text) >= self._forward.max_chars for text in texts.values()):
            return None
        fields = predictor.signature.fields
        return {field: _value(text, fields[field].annotation) for field, text in texts.items() if field in fields}

    def _labels(self, predictor: dspy.Predict, example: str) -> Mapping[str, Any] | None:
        """Return the fields that an example has itself, None if it lacks an input or has no output."""
        signature = predictor.signature
        values = {field: value for field, value in self._data[example].items() if field in signature.fields}
        has_output = any(field in values for field in signature.output_fields)
        if not has_output or not all(field in values for field in signature.input_fields):
            return None
        return {field: jsonable(value) for field, value in values.items()}


def _answer(demo: Demo, predictor: dspy.Predict) -> list[Any]:
    """Return what a demo answers in the last field, which is the answer where reasoning comes before it."""
    return [demo.fields.get(field) for field in list(predictor.signature.output_fields)[-1:]]


def _value(text: str, annotation: Any) -> Any:
    """Return the value of a field from its text in a prompt."""
    if annotation is str:
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text
