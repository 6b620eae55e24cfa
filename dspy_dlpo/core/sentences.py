"""Instructions as sequences of sentences: split, align, count edits, and apply edits.

A *unit* is a sentence of prose, a list item, a heading, a table row, a tag line, a JSON value or a fenced block,
together with the white space behind it, so that joining the units of a text gives the text back, to the letter.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import sentencex

_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})")
_LINE_UNIT = re.compile(
    r"[ \t]*(?:#{1,6}[ \t]|[-*+•][ \t]|\(?(?:\d{1,3}|[A-Za-z])[.)][ \t]|\||</?[A-Za-z][^<>]*>[ \t]*$)"
)
_BULLET = re.compile(r"[ \t]*(?:[-*+•][ \t]+|\(?(?:\d{1,3}|[A-Za-z])[.)][ \t]+)")
_ENDS_SENTENCE = re.compile(r"[.!?:;…。！？।؟)\]}>\"'”’`|]\s*$")
_CLOSING_TAG = re.compile(r"</[A-Za-z][^<>]*>[ \t]*$")
_SURROGATE = re.compile("[\ud800-\udfff]")
_JSON = json.JSONDecoder()
_ALIKE = 0.75
_NEGATIONS = {"no", "not", "never", "without", "t", "cannot", "unless", "except", "neither", "nor"}
_FILLERS = {"always", "do", "don", "must", "should", "please"}


@dataclass(frozen=True)
class Edit:
    """One change of one sentence of an instruction.

    Attributes:
        op: What happens: `add` a sentence behind sentence `at`, `replace` or `delete` sentence `at`, or `move`
            sentence `at` behind sentence `to`.
        at: Index of a sentence, from 0; for `add`, -1 puts the new sentence first.
        text: The new sentence, for `add` and `replace`.
        reason: Why, in the words of whoever proposed it.
        to: For `move`, the index of the sentence it goes behind; -1 puts it first.
    """

    op: Literal["add", "replace", "delete", "move"]
    at: int
    text: str = ""
    reason: str = ""
    to: int = -1


def split(text: str, protected: Collection[tuple[int, int]] = ()) -> list[str]:
    """Split a text into units whose concatenation is the text.

    Args:
        text: Any text: prose, lists, Markdown, XML, code, JSON, in any language.
        protected: Spans `(start, end)` in characters that must not be cut: the units they touch become one.

    Returns:
        The units, each with the white space that follows it; the first also has what stands before it. An empty or
        blank text has no units if empty, else one.

    Sentence ends are found by sentencex (about 300 languages); "3.14", "e.g." and URLs do not end a sentence. Blocks
    and lines are ours: a hard-wrapped paragraph is still prose, a list item with its indented lines is one unit.

    >>> split("Add the numbers, e.g. 3.14. Then answer.")
    ['Add the numbers, e.g. 3.14. ', 'Then answer.']
    """
    units: list[str] = []
    for block, prose in _blocks(text):
        for unit in _sentences(block) if prose else [block]:
            if units and (not unit.strip() or not units[-1].strip()):
                units[-1] += unit
            else:
                units.append(unit)
    return _merge(units, protected) if protected else units


def frozen_by(units: Sequence[str], protected: Iterable[tuple[int, int]]) -> frozenset[int]:
    """Return the indices of the units that one of the spans touches."""
    spans, frozen, start = list(protected), set(), 0
    for index, unit in enumerate(units):
        end = start + len(unit)
        if any(span_start < end and start < span_end for span_start, span_end in spans):
            frozen.add(index)
        start = end
    return frozenset(frozen)


def align(old: Sequence[str], new: Sequence[str]) -> list[Edit]:
    """Return the fewest edits that turn the old units into the new ones (Levenshtein on whole units).

    Among equally short lists it prefers to pair units that share words. A unit that only changes its place is one
    `move`. White space around units does not count.
    """
    rows, columns = [unit.strip() for unit in old], [unit.strip() for unit in new]
    words = [[set(text.lower().split()) for text in side] for side in (rows, columns)]

    def unlike(i: int, j: int) -> float:
        union = words[0][i] | words[1][j]
        return 1 - len(words[0][i] & words[1][j]) / len(union) if union else 0.0

    # cost[i][j] = (edits, how unlike the replaced pairs are) from the first i old units to the first j new ones.
    cost = [[(0, 0.0)] * (len(columns) + 1) for _ in range(len(rows) + 1)]
    for i in range(len(rows) + 1):
        for j in range(len(columns) + 1):
            if i and j and rows[i - 1] == columns[j - 1]:
                cost[i][j] = cost[i - 1][j - 1]
            elif i or j:
                options = []
                if i:
                    options.append((cost[i - 1][j][0] + 1, cost[i - 1][j][1] + 0.5))
                if j:
                    options.append((cost[i][j - 1][0] + 1, cost[i][j - 1][1] + 0.5))
                if i and j:
                    options.append((cost[i - 1][j - 1][0] + 1, cost[i - 1][j - 1][1] + unlike(i - 1, j - 1)))
                cost[i][j] = min(options)
    edits: list[Edit] = []
    i, j = len(rows), len(columns)
    while i or j:
        if i and j and rows[i - 1] == columns[j - 1]:
            i, j = i - 1, j - 1
        elif i and j and cost[i][j] == (cost[i - 1][j - 1][0] + 1, cost[i - 1][j - 1][1] + unlike(i - 1, j - 1)):
            i, j = i - 1, j - 1
            edits.append(Edit("replace", i, columns[j]))
        elif j and cost[i][j] == (cost[i][j - 1][0] + 1, cost[i][j - 1][1] + 0.5):
            j -= 1
            edits.append(Edit("add", i - 1, columns[j]))
        else:
            i -= 1
            edits.append(Edit("delete", i))
    return _join_moves(edits[::-1], rows)


def count_edits(old: Sequence[str], new: Sequence[str]) -> int:
    """Return how many units were added, deleted or modified; a moved unit counts once.

    >>> count_edits(["One. ", "Two. "], ["Two. ", "One. ", "Three."])
    2
    """
    return len(align(old, new))


def alike(one: str, other: str) -> bool:
    """Whether two sentences say the same: three quarters of their words in common, and the same numbers and negations.

    >>> alike("Write the size in brackets, please.", "Write the size in brackets.")
    True
    >>> alike("Always name the month and the year.", "Never name the month and the year.")
    False
    """
    words = [set(re.findall(r"\w+", text.lower())) for text in (one, other)]
    if any(word in _NEGATIONS or word.isdecimal() for word in words[0] ^ words[1]) or not words[0]:
        return False
    return len(words[0] & words[1]) >= _ALIKE * len(words[0] | words[1])


def opposed(one: str, other: str) -> bool:
    """Whether of two sentences that have three quarters of their other words in common just one is negated.

    >>> opposed("Always name the month.", "Never name the month.")
    True
    >>> opposed("Name the month.", "Name the year.")
    False
    """
    words = [set(re.findall(r"\w+", text.lower())) for text in (one, other)]
    negated = [bool(each & _NEGATIONS) for each in words]
    rest = [each - _NEGATIONS - _FILLERS for each in words]
    return negated[0] != negated[1] and len(rest[0] & rest[1]) >= _ALIKE * len(rest[0] | rest[1]) > 0


def apply(units: Sequence[str], edits: Sequence[Edit]) -> str:
    """Return the text after the edits; every unit that no edit touches stands verbatim and in order.

    A new sentence follows the look of its neighbours: it is a list item among list items, and stands on a line of
    its own unless it is put inside a paragraph.
    """
    text = ""
    for text, _ in growth(units, edits):  # noqa: B007 - The last one is the whole.
        pass
    return text.rstrip()


def growth(units: Sequence[str], edits: Sequence[Edit]) -> Iterator[tuple[str, int | Edit]]:
    """Yield the text after the edits as it grows, each time with what was put at its end.

    That is the index of an old unit, kept or moved, or the edit that wrote the sentence. What stands before it changes
    in white space alone.
    """
    gone = {edit.at for edit in edits if edit.op in ("delete", "move")}
    replaced = {edit.at: edit for edit in edits if edit.op == "replace"}
    behind: dict[int, list[tuple[str, int | Edit]]] = {}
    for edit in edits:
        if edit.op == "add":
            behind.setdefault(edit.at, []).append((edit.text, edit))
        elif edit.op == "move":
            behind.setdefault(edit.to, []).append((units[edit.at], edit.at))
    text = ""
    for index in range(-1, len(units)):
        if index >= 0 and index not in gone:
            unit = units[index]
            body = unit.rstrip()
            text += _finished(replaced[index].text.strip()) + unit[len(body) :] if index in replaced else unit
            yield text, replaced.get(index, index)
        for new, source in behind.get(index, []):
            text = _put_behind(text, new.strip(), units, index)
            yield text, source


def _put_behind(text: str, new: str, units: Sequence[str], index: int) -> str:
    anchor = units[index] if index >= 0 else ""
    follower = units[index + 1] if index + 1 < len(units) else ""
    bullet = _BULLET.match(anchor) or (None if anchor else _BULLET.match(follower))
    if bullet and not _LINE_UNIT.match(new):
        new = re.sub(r"\d+", lambda number: str(int(number.group()) + 1), bullet.group()) + new
    inside = bool(anchor and follower) and not anchor.endswith("\n") and not _LINE_UNIT.match(new)
    if inside and not _ENDS_SENTENCE.search(anchor):
        inside = False
    body = text.rstrip()
    gap = text[len(body) :]
    text = body + ((gap or " ") if inside else (gap if "\n" in gap else "\n")) if body else ""
    return text + _finished(new) + ((gap or " ") if inside else "\n")


def _finished(sentence: str) -> str:
    """End a sentence that lacks its full stop, lest it runs into the next one."""
    whole = not sentence or _LINE_UNIT.match(sentence) or _ENDS_SENTENCE.search(sentence)
    return sentence if whole else sentence + "."


def _join_moves(edits: list[Edit], rows: Sequence[str]) -> list[Edit]:
    """Make one `move` of each pair of a deleted unit and the same unit added elsewhere."""
    deleted = Counter(rows[edit.at] for edit in edits if edit.op == "delete")
    added = Counter(edit.text for edit in edits if edit.op == "add")
    moved = deleted & added
    targets: dict[str, list[int]] = {}
    kept: list[Edit] = []
    for edit in edits:
        if edit.op == "add" and moved[edit.text] > len(targets.get(edit.text, [])):
            targets.setdefault(edit.text, []).append(edit.at)
        else:
            kept.append(edit)
    return [
        replace(edit, op="move", to=targets[rows[edit.at]].pop(0))
        if edit.op == "delete" and targets.get(rows[edit.at])
        else edit
        for edit in kept
    ]


def _sentences(text: str) -> Iterator[str]:
    """Cut prose into sentences, those with a lone surrogate too, which sentencex cannot read."""
    start = 0
    for sentence in sentencex.segment("en", _SURROGATE.sub("\ufffd", text)):
        yield text[start : start + len(sentence)]
        start += len(sentence)


def _merge(units: Sequence[str], protected: Collection[tuple[int, int]]) -> list[str]:
    merged: list[str] = []
    start = 0
    for unit in units:
        if merged and any(span_start < start < span_end for span_start, span_end in protected):
            merged[-1] += unit
        else:
            merged.append(unit)
        start += len(unit)
    return merged


def _blocks(text: str) -> Iterable[tuple[str, bool]]:
    """Cut a text into fenced blocks, JSON values, single-line units and stretches of prose; say which are prose."""
    lines = text.splitlines(keepends=True)
    prose: list[str] = []
    index = 0
    while index < len(lines):
        block = _block_at(lines, index)
        if block:
            if prose:
                yield "".join(prose), True
                prose = []
            yield "".join(lines[index : index + block]), False
            index += block
            continue
        prose.append(lines[index])
        if not lines[index].strip() or _CLOSING_TAG.search(lines[index]):  # Both end a paragraph.
            yield "".join(prose), True
            prose = []
        index += 1
    if prose:
        yield "".join(prose), True


def _block_at(lines: Sequence[str], index: int) -> int:
    """Return how many lines the non-prose unit that starts here has; 0 for prose."""
    line = lines[index]
    if fence := _FENCE.match(line):
        for end in range(index + 1, len(lines)):
            if lines[end].strip().startswith(fence.group(1)) and not lines[end].strip().strip("`~"):
                return end - index + 1
        return len(lines) - index
    if line.lstrip()[:1] in ("{", "["):
        rest = "".join(lines[index:])
        try:
            _, end = _JSON.raw_decode(rest, len(rest) - len(rest.lstrip()))
        except ValueError:
            end = 0
        if end and not rest[end:].split("\n", 1)[0].strip():
            return rest[:end].count("\n") + 1
    if _LINE_UNIT.match(line):
        end = index + 1
        if _BULLET.match(line):  # An item owns the deeper indented lines below it.
            indent = len(line) - len(line.lstrip())
            while end < len(lines) and lines[end].strip() and not _LINE_UNIT.match(lines[end]):
                if len(lines[end]) - len(lines[end].lstrip()) <= indent:
                    break
                end += 1
        return end - index
    return 0
