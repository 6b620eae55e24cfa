"""Edits of an instruction by sentences: align two texts, apply edits, count them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from dspy_dlpo.core.sentences import ITEM, LINE_UNIT

_ENDS_SENTENCE = re.compile(r"[.!?:;…。！？।؟)\]}>\"'”’`|]\s*$")


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
    bullet = ITEM.match(anchor) or (None if anchor else ITEM.match(follower))
    if bullet and not LINE_UNIT.match(new):
        new = re.sub(r"\d+", lambda number: str(int(number.group()) + 1), bullet.group()) + new
    inside = bool(anchor and follower) and not anchor.endswith("\n") and not LINE_UNIT.match(new)
    if inside and not _ENDS_SENTENCE.search(anchor):
        inside = False
    body = text.rstrip()
    gap = text[len(body) :]
    text = body + ((gap or " ") if inside else (gap if "\n" in gap else "\n")) if body else ""
    return text + _finished(new) + ((gap or " ") if inside else "\n")


def _finished(sentence: str) -> str:
    """End a sentence that lacks its full stop, lest it runs into the next one."""
    whole = not sentence or LINE_UNIT.match(sentence) or _ENDS_SENTENCE.search(sentence)
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
