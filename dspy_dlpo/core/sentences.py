"""Texts cut into sentences, the units in which instructions are edited.

A *unit* is a sentence of prose, a list item, a heading, a table row, a tag line, a JSON value or a fenced block,
together with the white space behind it, so that joining the units of a text gives the text back, to the letter.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import accumulate, pairwise

import sentencex

LINE_UNIT = re.compile(
    r"[ \t]*(?:#{1,6}[ \t]|[-*+•][ \t]|\(?(?:\d{1,3}|[A-Za-z])[.)][ \t]|\||</?[A-Za-z][^<>]*>[ \t\r]*$)"
)
"""Begins a line that is a unit of its own."""
ITEM = re.compile(r"[ \t]*(?:[-*+•][ \t]+|\(?(?:\d{1,3}|[A-Za-z])[.)][ \t]+)")
"""The mark at the beginning of a list item."""
_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})")
_CLOSING_TAG = re.compile(r"</[A-Za-z][^<>]*>[ \t\r]*$")
_SURROGATE = re.compile("[\ud800-\udfff]")
_JSON = json.JSONDecoder()
_WINDOW = 200  # sentencex takes time that grows with the square of a text that is not ASCII.


def split(text: str, protected: Collection[tuple[int, int]] = ()) -> list[str]:
    """Split a text into units whose concatenation is the text. It takes time in proportion to its length.

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
    starts: list[int] = []  # Of the units.
    is_blank, position = True, 0
    for block, prose in _blocks(text):
        for piece in _sentences(block) if prose and not block.isspace() else [block]:
            if not starts:
                starts.append(0)
                is_blank = not piece.strip()
            elif piece.strip():
                if not is_blank:
                    starts.append(position)
                is_blank = False
            position += len(piece)
    if spans := _joined(protected):
        ends = [end for _, end in spans]
        starts = [start for start in starts if not start or not _is_inside(start, spans, ends)]
    return [text[start:end] for start, end in pairwise([*starts, len(text)])]


def frozen_by(units: Sequence[str], protected: Iterable[tuple[int, int]]) -> frozenset[int]:
    """Return the indices of the units that one of the spans touches."""
    ends = list(accumulate(map(len, units)))
    frozen: set[int] = set()
    for start, end in _joined(protected):
        frozen.update(range(bisect_right(ends, start), min(bisect_left(ends, end) + 1, len(units))))
    return frozenset(frozen)


def _joined(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the spans in order, those that overlap as one."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(span for span in spans if span[0] < span[1]):
        if joined and start < joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def _is_inside(position: int, spans: Sequence[tuple[int, int]], ends: Sequence[int]) -> bool:
    index = bisect_right(ends, position)
    return index < len(spans) and spans[index][0] < position


def _sentences(text: str) -> Iterator[str]:
    """Cut prose into sentences, those with a lone surrogate too, which sentencex cannot read.

    It is read in windows. The last sentence of a window may be cut short, so the next window begins with it.
    """
    readable = _SURROGATE.sub("\ufffd", text)
    start, size = 0, _WINDOW
    while start < len(text):
        window = readable[start : start + size] if not readable.isascii() else readable[start:]
        found = [len(sentence) for sentence in sentencex.segment("en", window)]
        if len(window) < len(text) - start:
            if len(found) < 2:
                size *= 2
                continue
            found.pop()
        for length in found:
            yield text[start : start + length]
            start += length
        size = _WINDOW


def _blocks(text: str) -> Iterator[tuple[str, bool]]:
    """Cut a text into fenced blocks, JSON values, single-line units and stretches of prose; say which are prose."""
    lines = text.splitlines(keepends=True)
    starts = [0, *accumulate(map(len, lines))]
    patience = 2 * len(text) + 1000  # Characters that may be read for JSON values that are none.
    prose: list[str] = []
    index = 0
    while index < len(lines):
        block = 0
        if lines[index].lstrip()[:1] in ("{", "[") and patience > 0:
            end, read = _json_at(text, starts[index])
            if end:
                last = bisect_left(starts, end)
                block = last - index if not text[end : starts[last]].strip() else 0
            patience -= 0 if block else max(read, end - starts[index])
        if block := block or _block_at(lines, index):
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


def _json_at(text: str, start: int) -> tuple[int, int]:
    """Return where the JSON value that begins here ends, 0 if it is none, and how many characters were read."""
    while text[start] not in "{[":
        start += 1
    try:
        _, end = _JSON.raw_decode(text, start)
    except json.JSONDecodeError as error:
        return 0, error.pos - start + 1
    except (ValueError, RecursionError):  # Too many digits; too deep.
        return 0, len(text) - start
    return end, 0


def _block_at(lines: Sequence[str], index: int) -> int:
    """Return how many lines the fenced block, the list item or the single-line unit has that starts here; else 0."""
    line = lines[index]
    fence = _FENCE.match(line) if line.lstrip()[:1] in ("`", "~") else None
    if fence:
        for end in range(index + 1, len(lines)):
            last = lines[end].strip()
            if last.startswith(fence.group(1)) and not last.strip("`~"):
                return end - index + 1
        return len(lines) - index
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
