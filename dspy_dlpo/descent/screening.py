"""What may enter a prompt: a table of named rules, each exact and the same in every language."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from dspy_dlpo.core.edits import Edit, apply, count_edits
from dspy_dlpo.core.likeness import WORD, normalised, tokens, weight
from dspy_dlpo.core.records import Refusal, UpdateRequest
from dspy_dlpo.core.sentences import split
from dspy_dlpo.core.tokens import count_tokens
from dspy_dlpo.descent.examples import Examples

TOO_MANY = "more edits than allowed"
TOGETHER = "breaks a limit together with the others"
LEFT_OUT = "not in the form that was asked for"
_LEAST_WEIGHT = 2 * WORD
_LONGEST = 4000
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
        units: The sentences that it writes.
        taken: Indices of the sentences that were changed or deleted before it.
        said: What the instruction, and the edits before it, say already, each sentence normalised.
        examples: What it must not copy.
    """

    edit: Edit
    request: UpdateRequest
    units: Sequence[str]
    taken: set[int]
    said: set[str]
    examples: Examples

    @property
    def changes(self) -> bool:
        """Whether it touches a sentence that is there."""
        return self.edit.op != "add"

    @property
    def writes(self) -> bool:
        """Whether it brings a text."""
        return self.edit.op in ("add", "replace")


def _does_not_exist(case: Case) -> bool:
    return not (0 if case.changes else -1) <= case.edit.at < len(case.request.sentences)


def _is_no_sentence(case: Case) -> bool:
    return case.writes and not any(sum(map(weight, tokens(unit))) >= _LEAST_WEIGHT for unit in case.units)


def _is_nothing_new(case: Case) -> bool:
    return case.writes and all(normalised(unit) in case.said for unit in case.units)


RULES: Mapping[str, Callable[[Case], bool]] = {
    "frozen sentence": lambda case: case.changes and case.edit.at in case.request.frozen,
    "no such sentence": _does_not_exist,
    "second edit of a sentence": lambda case: case.changes and case.edit.at in case.taken,
    "protected text": lambda case: "<keep>" in case.edit.text or "</keep>" in case.edit.text,
    f"longer than {_LONGEST:,} characters": lambda case: len(case.edit.text) > _LONGEST,
    "no sentence": _is_no_sentence,
    "nothing new": _is_nothing_new,
    "quotes an input": lambda case: any(map(case.examples.quoted, case.units)),
    "a sentence of an input": lambda case: any(map(case.examples.is_sentence, case.units)),
    "the answer of one example": lambda case: any(map(case.examples.answer_in, case.units)),
}
"""The rules for one edit, in the order in which they are tried: each says whether the edit breaks it.

* frozen sentence: a policy or the user's protection keeps it.
* no such sentence: the number is that of no sentence.
* second edit of a sentence: one change of each is enough.
* protected text: only the user marks text to keep.
* longer than 4,000 characters: that is no rule.
* no sentence: less than two words, or three ideographs.
* nothing new: equal to what the instruction says, after `normalised`.
* quotes an input, a sentence of an input, the answer of one example: see `Examples`.
"""


def screen(edits: Sequence[Edit], request: UpdateRequest, examples: Examples) -> Screened:
    """Return the edits that keep the rules one by one, and the others with the rule that each broke.

    A text of several sentences stays one edit, and counts as that many. Where they are more than the request allows,
    each sentence of a paragraph becomes an edit of its own; a text of several lines is refused. A text must help on the
    trial if a sentence of it gives away the answer of an example behind it, or if the critic did not keep to the form.
    """
    kept: list[Edit] = []
    refusals: list[Refusal] = []
    taken: set[int] = set()
    said = {normalised(sentence) for sentence in request.sentences}
    loose = {normalised(point.text) for point in request.gradient.points if point.is_loose}
    behind = {example for point in request.gradient.points for example in point.examples}
    for edit in edits:
        for single in _fitting(edit, request):
            units = [unit.strip() for unit in split(single.text)] if len(single.text) <= _LONGEST else []
            case = Case(single, request, units, taken, said, examples)
            rule = next((name for name, is_broken in RULES.items() if is_broken(case)), "")
            if rule:
                refusals.append(refused(rule, single, request))
                continue
            in_doubt = not loose.isdisjoint(map(normalised, units)) or examples.gives_away(single.text, behind)
            single = replace(single, must_help=single.must_help or in_doubt)
            kept.append(single)
            said.update(map(normalised, units))
            if single.op != "add":
                taken.add(single.at)
    if request.max_edits is not None:
        fit = {id(edit) for edit in up_to(kept, request.max_edits)}
        refusals += [refused(TOO_MANY, edit, request) for edit in kept if id(edit) not in fit]
    return Screened([edit for edit in kept if request.max_edits is None or size(edit) <= request.max_edits], refusals)


def size(edit: Edit) -> int:
    """Return how many sentences an edit changes."""
    return max(len(split(edit.text.strip())), 1) if edit.op in ("add", "replace") else 1


def up_to(edits: Iterable[Edit], most: int | None) -> list[Edit]:
    """Return the first edits that together change at most so many sentences; None for no limit."""
    kept, total = [], 0
    for edit in edits:
        if most is None or total + size(edit) <= most:
            kept.append(edit)
            total += size(edit)
    return kept


def _fitting(edit: Edit, request: UpdateRequest) -> list[Edit]:
    """Return the edit, or one for each of its sentences if it has more than a candidate may change."""
    is_whole = len(edit.text) > _LONGEST or "\n" in edit.text.strip()
    if edit.op not in ("add", "replace") or request.max_edits is None or is_whole:
        return [edit]
    texts = [unit.strip() for unit in split(edit.text)]
    if len(texts) <= request.max_edits:
        return [edit]
    return [replace(edit, text=texts[0]), *(replace(edit, op="add", text=text) for text in texts[1:])]


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
