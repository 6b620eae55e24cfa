"""Texts cut into sentences, the units in which instructions are edited.

A *unit* is a sentence of prose, a list item, a heading, a table row, a tag line, a JSON value or a fenced block,
together with the white space behind it, so that joining the units of a text gives the text back, to the letter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence

import sentencex

LINE_UNIT = re.compile(
    r"[ \t]*(?:#{1,6}[ \t]|[-*+•][ \t]|\(?(?:\d{1,3}|[A-Za-z])[.)][ \t]|\||</?[A-Za-z][^<>]*>[ \t]*$)"
)
"""Begins a line that is a unit of its own."""
ITEM = re.compile(r"[ \t]*(?:[-*+•][ \t]+|\(?(?:\d{1,3}|[A-Za-z])[.)][ \t]+)")
"""The mark at the beginning of a list item."""
_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})")
_CLOSING_TAG = re.compile(r"</[A-Za-z][^<>]*>[ \t]*$")
_SURROGATE = re.compile("[\ud800-\udfff]")
_JSON = json.JSONDecoder()


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
    if LINE_UNIT.match(line):
        end = index + 1
        if ITEM.match(line):  # An item owns the deeper indented lines below it.
            indent = len(line) - len(line.lstrip())
            while end < len(lines) and lines[end].strip() and not LINE_UNIT.match(lines[end]):
                if len(lines[end]) - len(lines[end].lstrip()) <= indent:
                    break
                end += 1
        return end - index
    return 0
