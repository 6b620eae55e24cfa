"""What may enter a prompt: a table of named rules, each exact and the same in every language."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from dspy_dlpo.core.edits import Edit, apply, count_edits
from dspy_dlpo.core.likeness import alike, words
from dspy_dlpo.core.records import Refusal, UpdateRequest
from dspy_dlpo.core.sentences import split
from dspy_dlpo.core.tokens import count_tokens
from dspy_dlpo.descent.critic import addressed

Copies = Callable[[str], str]
"""Returns the name of the rule by which a text copies an example; empty if it copies none."""
TOO_MANY = "more edits than allowed"
TOGETHER = "breaks a limit together with the others"
_FRAGMENT = re.compile(r"\W*(\d+ times|[A-Za-z0-9_]+)\W*")  # "(3 times)" is what the criticism says of a point.
_MAX_TEXTS = 10
_MAX_CHARS = 300


class Screened(NamedTuple):
    """The edits that keep the rules, and the others, each with the rule that it broke."""

    kept: list[Edit]
    refusals: list[Refusal]


@dataclass(frozen=True)
class Case:
    """An edit that is judged.

    Attributes:
        edit: It.
        request: What it must keep to.
        kept: The edits of this request that were kept before it.
        copies: Whether a text copies an example, and by which rule.
    """

    edit: Edit
    request: UpdateRequest
    kept: Sequence[Edit]
    copies: Copies

    @property
    def changes(self) -> bool:
        """Whether it touches a sentence that is there."""
        return self.edit.op != "add"

    @property
    def writes(self) -> bool:
        """Whether it brings a text."""
        return self.edit.op in ("add", "replace")


def _exists(case: Case) -> bool:
    return (0 if case.changes else -1) <= case.edit.at < len(case.request.sentences)


def _is_new(case: Case) -> bool:
    """Whether a new sentence says something that no other sentence says already."""
    edit, sentences = case.edit, case.request.sentences
    others = [sentence for index, sentence in enumerate(sentences) if edit.op == "add" or index != edit.at]
    others += [other.text for other in case.kept if other.text]
    replaced = edit.op == "replace" and words(sentences[edit.at]) == words(edit.text)
    return bool(edit.text.strip()) and not replaced and not any(alike(edit.text, other) for other in others)


RULES: Mapping[str, Callable[[Case], bool]] = {
    "frozen sentence": lambda case: case.changes and case.edit.at in case.request.frozen,
    "no such sentence": lambda case: not _exists(case),
    "second edit of a sentence": lambda case: (
        case.changes and case.edit.at in {each.at for each in case.kept if each.op != "add"}
    ),
    "protected text": lambda case: "<keep>" in case.edit.text or "</keep>" in case.edit.text,
    "no sentence": lambda case: case.writes and _FRAGMENT.fullmatch(case.edit.text) is not None,
    "nothing new": lambda case: case.writes and not _is_new(case),
}
"""The rules for one edit, in the order in which they are tried: each says whether the edit breaks it."""


def screen(edits: Sequence[Edit], request: UpdateRequest, copies: Copies) -> Screened:
    """Return the edits that keep the rules one by one, and the others with the rule that each broke.

    An added or replacing text of several sentences becomes one edit for each of them.
    """
    kept: list[Edit] = []
    refusals: list[Refusal] = []
    for edit in edits:
        for single in _singles(edit):
            case = Case(single, request, kept, copies)
            rule = next((name for name, is_broken in RULES.items() if is_broken(case)), "") or copies(single.text)
            if rule:
                refusals.append(refused(rule, single, request))
            else:
                kept.append(single)
    if request.max_edits is not None:
        refusals += [refused(TOO_MANY, edit, request) for edit in kept[request.max_edits :]]
    return Screened(kept, refusals)


def within_limits(
    edits: Sequence[Edit], request: UpdateRequest, stored: Callable[[str], tuple[str, Sequence[str]]]
) -> Screened:
    """Return the edits that together keep every constraint: all of them, else as many as fit one after another.

    Args:
        edits: At most as many as the cap.
        request: Has the constraints.
        stored: What a text becomes when DSPy has stored it, and its units.
    """
    if not edits or satisfies(*stored(apply(request.sentences, edits)), request):
        return Screened(list(edits), [])
    kept: list[Edit] = []
    refusals = []
    for edit in edits:
        if satisfies(*stored(apply(request.sentences, [*kept, edit])), request):
            kept.append(edit)
        else:
            refusals.append(refused(TOGETHER, edit, request))
    return Screened(kept, refusals)


def satisfies(text: str, units: Sequence[str], request: UpdateRequest) -> bool:
    """Whether a candidate's text, as DSPy reads it back and split into units, keeps every constraint of the request."""
    if request.max_tokens is not None and count_tokens(text) > request.max_tokens:
        return False
    if request.max_edits is not None and count_edits(request.sentences, units) > request.max_edits:
        return False
    position = 0
    for index in sorted(request.frozen):
        sentence = request.sentences[index].strip()
        position = text.find(sentence, position)
        if position < 0:
            return False
        position += len(sentence)
    return bool(text.strip())


def refused(rule: str, edit: Edit, request: UpdateRequest) -> Refusal:
    """Return a refusal of an edit, with the sentence it is about."""
    is_there = edit.op in ("delete", "move") and 0 <= edit.at < len(request.sentences)
    text = request.sentences[edit.at].strip() if is_there else edit.text
    return Refusal(rule, text, request.predictor)


def bounded(refusals: Iterable[Refusal]) -> tuple[Refusal, ...]:
    """Return refusals for a record: equal ones counted, few and short texts of each rule, the rest as a number."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for each in refusals:
        text = each.text if len(each.text) <= _MAX_CHARS else each.text[: _MAX_CHARS - 1] + "…"
        counts.setdefault((each.rule, each.predictor), Counter())[text] += each.times
    found = []
    for (rule, predictor), texts in counts.items():
        shown = list(texts.items())[:_MAX_TEXTS]
        found += [Refusal(rule, text, predictor, times) for text, times in shown]
        if rest := texts.total() - sum(times for _, times in shown):
            found.append(Refusal(rule, "", predictor, rest))
    return tuple(found)


def _singles(edit: Edit) -> list[Edit]:
    texts = [addressed(unit.strip()) for unit in split(edit.text)]
    if edit.op not in ("add", "replace") or not texts:
        return [edit]
    first = replace(edit, text=texts[0])
    return [first, *(replace(edit, op="add", text=text) for text in texts[1:])]
