"""The user's text has first rights: what changes it must be better on the trial, not merely no worse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dspy_dlpo.core.edits import Edit
from dspy_dlpo.core.likeness import normalised
from dspy_dlpo.core.records import Candidate, UpdateRequest
from dspy_dlpo.core.sentences import split
from dspy_dlpo.core.steps import Threshold

_LEAST_GAIN = 1e-9  # Of the score range: more than what rounding makes of no gain.


def touches_users_text(edits: Sequence[Edit], sentences: Sequence[str], instruction: str) -> bool:
    """Whether one of the edits deletes or replaces a sentence of the student's.

    Args:
        edits: Edits of an instruction.
        sentences: Its units.
        instruction: The student's. A sentence is the student's if it is equal to one there, after normalising.
    """
    own = {normalised(sentence) for sentence in split(instruction)}
    return any(
        edit.op in ("delete", "replace") and normalised(sentences[edit.at]) in own
        for edit in edits
        if 0 <= edit.at < len(sentences)
    )


def must_help(candidate: Candidate, requests: Mapping[str, UpdateRequest], student: Candidate) -> bool:
    """Whether a candidate must be better than the incumbent, where others need only be no worse.

    It must if it touches the user's text, or holds an edit that must help: of a whole rewrite, or of a critic that did
    not keep to the form.

    Args:
        candidate: The candidate.
        requests: What was asked for, with the incumbent's sentences, by predictor.
        student: What the user gave.
    """
    return any(
        any(edit.must_help for edit in edits)
        or touches_users_text(edits, requests[name].sentences, student.instructions.get(name, ""))
        for name, edits in candidate.edits.items()
    )


def first_rights(
    candidate: Candidate, requests: Mapping[str, UpdateRequest], student: Candidate, width: float
) -> Threshold:
    """Return what a candidate must gain whatever the policies let pass; `width` is that of the score range."""
    if not must_help(candidate, requests, student):
        return Threshold()
    return Threshold(0.0, {"must help": True}, _LEAST_GAIN * width)
