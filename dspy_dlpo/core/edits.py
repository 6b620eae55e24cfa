"""Edits of an instruction by sentences: align two texts, apply edits, count them."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from dspy_dlpo.core.likeness import is_ideograph
from dspy_dlpo.core.sentences import ITEM, LINE_UNIT

_ENDS_SENTENCE = tuple(".!?:;…。．｡！？：；।؟۔።)]}>\"'”’」』）】`|")
_NUMBER = re.compile(r"\d+|[A-Za-z](?=[.)])")
_FIRST_RIGHT_TO_LEFT = "\u0590"  # Scripts from here on end sentences in other ways, or with nothing.
_MOST_CELLS = 40_000  # Of one table of the alignment; about 0.1 s.


@dataclass(frozen=True)
class Edit:
    """One change of one sentence of an instruction.

    Attributes:
        op: What happens: `add` a sentence behind sentence `at`, `replace` or `delete` sentence `at`, or `move`
            sentence `at` behind sentence `to`.
        at: Index of a sentence, from 0; for `add`, -1 puts the new sentence first.
        text: The new sentence, for `add` and `replace`.
        reason: Why, in the words of its proposer.
        to: For `move`, the index of the sentence it goes behind; -1 puts it first.
        must_help: Whether a candidate with it must be better on the trial, where others need only be no worse.
    """

    op: Literal["add", "replace", "delete", "move"]
    at: int
    text: str = ""
    reason: str = ""
    to: int = -1
    must_help: bool = False


def align(old: Sequence[str], new: Sequence[str]) -> list[Edit]:
    """Return the edits that turn the old units into the new ones.

    They are the fewest (Levenshtein on whole units) where the texts have up to about 200 units that differ, and nearly
    so beyond: long texts are first cut where they share a unit that each has once. Among equally short lists it prefers
    to pair units that share words. A unit that only changes its place is one `move`. White space around units does not
    count.
    """
    rows, columns = [unit.strip() for unit in old], [unit.strip() for unit in new]
    return _join_moves(list(_aligned(rows, columns)), rows)


def _aligned(rows: Sequence[str], columns: Sequence[str]) -> Iterator[Edit]:
    """Yield the edits, stretch by stretch: what both sides share at the beginning, at the end and between is kept."""
    stretches = [(0, len(rows), 0, len(columns))]
    while stretches:
        top, bottom, left, right = stretches.pop()
        while top < bottom and left < right and rows[top] == columns[left]:
            top, left = top + 1, left + 1
        while top < bottom and left < right and rows[bottom - 1] == columns[right - 1]:
            bottom, right = bottom - 1, right - 1
        if (bottom - top + 1) * (right - left + 1) <= _MOST_CELLS:
            yield from _fewest(rows[top:bottom], columns[left:right], top)
        elif anchors := _anchors(rows, columns, top, bottom, left, right):
            corners = [(top - 1, left - 1), *anchors, (bottom, right)]
            between = [(i + 1, next_i, j + 1, next_j) for (i, j), (next_i, next_j) in pairwise(corners)]
            stretches += reversed(between)
        else:
            yield from _in_order(top, bottom, columns[left:right])


def _anchors(
    rows: Sequence[str], columns: Sequence[str], top: int, bottom: int, left: int, right: int
) -> list[tuple[int, int]]:
    """Return the units that both sides have just once, as many as follow each other on both (patience sorting)."""
    places = [
        {text: place for place, text in enumerate(side[start:end], start) if counts[text] == 1}
        for side, start, end in ((rows, top, bottom), (columns, left, right))
        for counts in [Counter(side[start:end])]
    ]
    shared = [(place, places[1][text]) for text, place in places[0].items() if text in places[1]]
    lasts: list[int] = []
    piles: list[tuple[int, int]] = []
    before: dict[tuple[int, int], tuple[int, int] | None] = {}
    for pair in shared:
        pile = bisect_left(lasts, pair[1])
        before[pair] = piles[pile - 1] if pile else None
        lasts[pile : pile + 1], piles[pile : pile + 1] = [pair[1]], [pair]
    found: list[tuple[int, int]] = []
    last = piles[-1] if piles else None
    while last:
        found.append(last)
        last = before[last]
    return found[::-1]


def _in_order(top: int, bottom: int, texts: Sequence[str]) -> Iterator[Edit]:
    """Yield edits that replace units one by one; what is left over is deleted or added."""
    both = min(bottom - top, len(texts))
    yield from (Edit("replace", top + index, text) for index, text in enumerate(texts[:both]))
    yield from (Edit("delete", index) for index in range(top + both, bottom))
    yield from (Edit("add", bottom - 1, text) for text in texts[both:])


def _fewest(rows: Sequence[str], columns: Sequence[str], start: int) -> Iterator[Edit]:
    words = [[set(text.lower().split()) for text in side] for side in (rows, columns)]

    def unlike(i: int, j: int) -> float:
        union = len(words[0][i] | words[1][j])
        return 1 - len(words[0][i] & words[1][j]) / union if union else 0.0

    # cost[i][j] = (edits, how unlike the replaced pairs are) from the first i old units to the first j new ones.
    cost = [[(0, 0.0)] * (len(columns) + 1) for _ in range(len(rows) + 1)]
    pair = [[unlike(i, j) for j in range(len(columns))] for i in range(len(rows))]
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
                    options.append((cost[i - 1][j - 1][0] + 1, cost[i - 1][j - 1][1] + pair[i - 1][j - 1]))
                cost[i][j] = min(options)
    edits: list[Edit] = []
    i, j = len(rows), len(columns)
    while i or j:
        if i and j and rows[i - 1] == columns[j - 1]:
            i, j = i - 1, j - 1
        elif i and j and cost[i][j] == (cost[i - 1][j - 1][0] + 1, cost[i - 1][j - 1][1] + pair[i - 1][j - 1]):
            i, j = i - 1, j - 1
            edits.append(Edit("replace", start + i, columns[j]))
        elif j and cost[i][j] == (cost[i][j - 1][0] + 1, cost[i][j - 1][1] + 0.5):
            j -= 1
            edits.append(Edit("add", start + i - 1, columns[j]))
        else:
            i -= 1
            edits.append(Edit("delete", start + i))
    yield from reversed(edits)


def count_edits(old: Sequence[str], new: Sequence[str]) -> int:
    """Return how many units were added, deleted or modified; a moved unit counts once.

    >>> count_edits(["One. ", "Two. "], ["Two. ", "One. ", "Three."])
    2
    """
    return len(align(old, new))


def apply(units: Sequence[str], edits: Sequence[Edit]) -> str:
    """Return the text after the edits; every unit that no edit touches stands verbatim and in order.

    A new sentence follows the look of its neighbours: it is a list item among list items, and stands on a line of
    its own unless it is put inside a paragraph. A numbered list goes on numbering: a new item without a place of its
    own comes behind the last one, so that no item of the user's changes its number. Line ends are those of the text.
    """
    return "".join(text for text, _ in growth(units, edits)).rstrip()


def growth(units: Sequence[str], edits: Sequence[Edit]) -> list[tuple[str, int | Edit]]:
    """Return the text after the edits in parts, each with the index of the old unit or the edit that it is from."""
    gone = {edit.at for edit in edits if edit.op in ("delete", "move")}
    replaced = {edit.at: edit for edit in edits if edit.op == "replace"}
    behind: dict[int, list[tuple[str, int | Edit]]] = {}
    for edit in edits:
        if edit.op == "add":
            behind.setdefault(_place(edit, units, gone), []).append((edit.text, edit))
        elif edit.op == "move":
            behind.setdefault(edit.to, []).append((units[edit.at], edit.at))
    line_end = "\r\n" if any("\r\n" in unit for unit in units) else "\n"
    parts: list[tuple[str, int | Edit]] = []
    for index in range(-1, len(units)):
        if index >= 0 and index not in gone:
            unit = units[index]
            text = unit
            if index in replaced:
                text = _as_item(replaced[index].text.strip(), unit) + unit[len(unit.rstrip()) :]
            parts.append((text, replaced.get(index, index)))
        anchor = units[index] if index >= 0 else ""
        follower = units[index + 1] if index + 1 < len(units) else ""
        mark = _mark(anchor) if anchor else _mark(follower)
        is_first = index in gone or not anchor
        for text, source in behind.get(index, []):
            new, mark = _marked(text.strip(), mark, takes_over=is_first)
            is_first = False
            _put_behind(parts, new, source, anchor, follower, line_end)
            anchor = new if mark else anchor
    return parts


def _place(edit: Edit, units: Sequence[str], gone: set[int]) -> int:
    """Return the unit behind which a new sentence is put: of a numbered list the last item, else what the edit says."""
    at = max(edit.at, 0) if units and _NUMBER.search(_mark(units[0])) else edit.at
    if at >= 0 and _NUMBER.search(_mark(units[at])):
        while at + 1 < len(units) and _next(_mark(units[at])) == _mark(units[at + 1]) and at + 1 not in gone:
            at += 1
    return at


def _mark(unit: str) -> str:
    """Return the mark of a list item; empty for any other unit."""
    found = ITEM.match(unit)
    return found.group() if found else ""


def _next(mark: str) -> str:
    """Return the mark of the item behind one with this mark.

    >>> _next("- "), _next("3. "), _next(" (b) ")
    ('- ', '4. ', ' (c) ')
    """

    def follow(found: re.Match[str]) -> str:
        number = found.group()
        if number.isdecimal():
            return str(int(number) + 1)
        return number if number in "zZ" else chr(ord(number) + 1)

    return _NUMBER.sub(follow, mark, count=1)


def _marked(new: str, mark: str, takes_over: bool) -> tuple[str, str]:
    """Return a new sentence as an item of the list that it is put into, and its mark: this one, or the next."""
    if not mark or (LINE_UNIT.match(new) and not ITEM.match(new)) or "\n" in new:
        return new, ""
    mark = mark if takes_over else _next(mark)
    return mark + new[len(_mark(new)) :], mark


def _as_item(new: str, unit: str) -> str:
    """Return a sentence in place of another: with its mark, if that was a list item and the new one has none."""
    mark = _mark(unit)
    return _finished(mark + new if mark and not LINE_UNIT.match(new) else new)


def _put_behind(
    parts: list[tuple[str, int | Edit]], new: str, source: int | Edit, anchor: str, follower: str, line_end: str
) -> None:
    """Add a part, and mend the white space before it."""
    inside = (
        bool(anchor and follower)
        and not anchor.endswith("\n")
        and not LINE_UNIT.match(new)
        and anchor.rstrip().endswith(_ENDS_SENTENCE)
    )
    gap = ""
    if parts:
        text, before = parts[-1]
        body = text.rstrip()
        gap = text[len(body) :]
        parts[-1] = (body + ((gap or " ") if inside else (gap if "\n" in gap else line_end)), before)
    parts.append((_finished(new) + ((gap or " ") if inside else line_end), source))


def _finished(sentence: str) -> str:
    """End a sentence that lacks its full stop, lest it runs into the next one."""
    if not sentence or LINE_UNIT.match(sentence) or sentence.rstrip().endswith(_ENDS_SENTENCE):
        return sentence
    last = sentence.rstrip()[-1]
    return sentence + ("。" if is_ideograph(last) else "." if last < _FIRST_RIGHT_TO_LEFT else "")


def _join_moves(edits: list[Edit], rows: Sequence[str]) -> list[Edit]:
    """Make one `move` of each pair of a deleted unit and the same unit added elsewhere."""
    deleted = Counter(rows[edit.at] for edit in edits if edit.op == "delete")
    added = Counter(edit.text for edit in edits if edit.op == "add")
    moved = deleted & added
    if not moved:
        return edits
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
