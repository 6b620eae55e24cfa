"""How the replies of critic and proposer are read: by their form alone, never by what they say.

Both are asked for lines of a given form. Whatever does not have it (a preamble, a refusal, an apology, a farewell) is
no edit and no requirement, in any language. Where nothing should change, the reply is the one word that was asked for.
Everything here takes time in proportion to the length of the reply.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import compress
from typing import Any, NamedTuple

from dspy_dlpo.core.edits import Edit, align
from dspy_dlpo.core.sentences import split

NOTHING = "NOTHING"
"""What critic and proposer are asked to write where nothing should change."""
_MAX_CHARS = 40_000  # Of a reply; the rest is not read.
_MAX_ITEMS = 60
_THOUGHTS = "think|thinking|thought|thoughts|reasoning|reflection|scratchpad"
_THOUGHT = re.compile(rf"<(/?)(?:{_THOUGHTS})>", re.IGNORECASE)
_FENCE = re.compile(r"[ \t]*(?:`{3,}|~{3,})[ \t]*[\w+-]*[ \t]*$")
_ITEM = re.compile(
    r"([ \t]*)(?:[-*+–—](?=[ \t])|[•·・●○◦▪‣■□►①-⑳]|\(?\d{1,3}[.)](?=[ \t])|\[\d{1,3}\](?=[ \t])|\d{1,3}[、．]"
    r"|[（(]\d{1,3}[）)])[ \t]*"
)
_TAGGED = re.compile(r"[ \t]*<([A-Za-z][\w-]*)>(.*)</\1>[ \t]*$")
_HEADING = re.compile(r"[ \t]*#{1,6}[ \t]")
_STRING = re.compile(r"""(["'])((?:(?!\1)[^\\]|\\.)*+)\1""", re.DOTALL)
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}
_LEAD_IN = (":", "：", "︓", "﹕")
_EMPHASIS = ("«»", "**", "__", '"', "“”", "'", "「」", "`", "*")
_SYNONYMS = {"insert": "add", "modify": "replace", "remove": "delete"}
_OP = re.compile(
    r"^[\s>*\-•\d.)\[\]«]*+(add|insert|replace|modify|delete|remove)\b[\s*]*(?:(?:after|sentence|number|#)\s*)*(\d{1,6}\b)?",
    re.IGNORECASE,
)
_LEAD = re.compile(r"(?:\s|:|-|\||\bwith\b|\bby\b)+", re.IGNORECASE)
_QUOTED = re.compile(r"""["“](.*)["”][\s.,;|»]*(?:BECAUSE\b:?\s*(.*))?$""", re.IGNORECASE | re.DOTALL)
_CLOSED = re.compile(r"""["”][\s.,;|»]*(?:BECAUSE\b.*)?$""")
_REWRITTEN = "part of a whole rewrite"


class Requirements(NamedTuple):
    """What a critic wrote.

    Attributes:
        marked: Requirements in the form that was asked for: items of a list.
        loose: Lines of a reply that has no list at all. They may be requirements, a refusal or an apology.
        ignored: What stands around a list.
    """

    marked: list[str]
    loose: list[str]
    ignored: list[str]


def is_nothing(text: str) -> bool:
    """Whether a reply, or a line of it, is the word for "nothing to change", or empty.

    >>> is_nothing("**Nothing.**"), is_nothing("Nothing is missing.")
    (True, False)
    """
    return len(text) <= 80 and re.sub(r"^[\W_]+|[\W_]+$", "", text).upper() in ("", NOTHING)


def content(reply: str) -> str:
    """Return a reply without the model's thoughts, and without fences around the whole."""
    text = reply[:_MAX_CHARS]
    parts: list[str] = []
    start, depth = 0, 0
    for tag in _THOUGHT.finditer(text):
        if tag[1]:
            parts = parts if depth else []  # The prompt had opened it: all before it was thought.
            depth = max(depth - 1, 0)
        else:
            parts += [text[start : tag.start()]] if not depth else []
            depth += 1
        start = tag.end()
    text = "".join([*parts, *([] if depth else [text[start:]])]).strip()
    lines = text.splitlines(keepends=True)
    if len(lines) > 1 and _FENCE.match(lines[0].rstrip()) and _FENCE.match(lines[-1].rstrip()):
        text = "".join(lines[1:-1]).strip()
    return text


def read_requirements(reply: str) -> Requirements:
    r"""Read what the critic wrote: items of a list, marked by bullets, numbers or tags, or a JSON or Python list.

    An item owns the deeper indented lines below it, so a requirement may have several lines.

    >>> read_requirements("Here they are:\n- Be brief.\n- Be kind.\nGood luck!")
    Requirements(marked=['Be brief.', 'Be kind.'], loose=[], ignored=['Here they are:', 'Good luck!'])
    """
    text = content(reply)
    if is_nothing(text):
        return Requirements([], [], [])
    listed, around = _listed(text)
    if listed is not None:
        return Requirements(_clean(each for each in listed if isinstance(each, str)), [], around)
    items: list[list[str]] = []
    others: list[str] = []
    indent = -1  # Of the open item.
    for line in text.splitlines():
        bare = line.lstrip()
        item = _ITEM.match(line)
        tagged = _TAGGED.match(line) if bare[:1] == "<" else None
        depth = len(line) - len(bare)
        if indent >= 0 and bare and depth > indent:
            items[-1].append(line[indent:])
        elif item:
            indent = len(item[1])
            items.append([line[item.end() :]])
        elif tagged:
            items.append([tagged[2]])
        elif bare and not (bare[0] in "`~" and _FENCE.match(line)):
            indent = -1
            others.append(bare.rstrip())
    marked = _clean("\n".join(lines) for lines in items)
    if items:
        return Requirements(marked, [], others)
    is_said = [not (line.endswith(_LEAD_IN) or _HEADING.match(line)) for line in others]
    loose = _clean(compress(others, is_said))
    return Requirements([], loose, [line for line, said in zip(others, is_said, strict=True) if not said])


def as_lines(reply: str) -> str:
    """Return a reply of lines as such, whether it was written as lines or as a list."""
    text = content(reply)
    listed, _ = _listed(text)
    return text if listed is None else "\n".join(each for each in listed if isinstance(each, str))


def read_edits(reply: str, sentences: Sequence[str]) -> list[Edit]:
    """Read the proposer's edits. A reply that has none in the form that was asked for holds no edit.

    Args:
        reply: What the model wrote: edits as lines, or a JSON or Python list of them. A quoted text may have several
            lines.
        sentences: The units of the instruction; the reply numbers them from 1.

    Returns:
        The edits in the order of the reply, at most 60.
    """
    text = content(reply)
    listed, _ = _listed(text)
    if listed is not None:
        found = [_from_item(each, len(sentences)) for each in listed[:_MAX_ITEMS]]
    else:
        found = [_edit(block, len(sentences)) for block in _edit_blocks(text)]
    return [edit for edit in found if edit is not None][:_MAX_ITEMS]


def read_rewrite(field: str, sentences: Sequence[str]) -> list[Edit]:
    """Read a whole new instruction as edits of the old one; each of them must help.

    Args:
        field: The field that was asked for the whole instruction, and for nothing else.
        sentences: The units of the old instruction.
    """
    text = content(field)
    if is_nothing(text):
        return []
    edits = align(sentences, split(text))
    return [replace(edit, reason=_REWRITTEN, must_help=True) for edit in edits]


def _clean(items: Iterable[str]) -> list[str]:
    """Return items without quotes or stars around the whole, and without those that say "nothing"."""
    found = []
    for item in items:
        text = item.strip()
        for mark in _EMPHASIS:
            start, end = (mark, mark) if len(set(mark)) == 1 else (mark[0], mark[1])
            inner = text[len(start) : -len(end)]
            if text.startswith(start) and text.endswith(end) and inner and not (start in inner or end in inner):
                text = inner.strip()
        if not is_nothing(text):
            found.append(text)
        if len(found) == _MAX_ITEMS:
            break
    return found


def _listed(text: str) -> tuple[list[Any] | None, list[str]]:
    """Return the JSON or Python list that a text holds, if it holds one, and the lines around it.

    A list begins at the beginning of a line. Of one that was cut off, what is complete counts.
    """
    start = 0 if text[:1] in ("[", "{") else next((each.end() for each in re.finditer(r"\n(?=[\[{])", text)), -1)
    if start < 0:
        return None, []
    before = [line for line in text[:start].splitlines() if line.strip() and not _FENCE.match(line)]
    try:
        value, end = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):
        value, end = _strings(text, start)
    if isinstance(value, Mapping):
        lists = [each for each in value.values() if isinstance(each, list)]
        value = lists[0] if len(lists) == 1 else [value]
    if not isinstance(value, list) or text[end:].split("\n", 1)[0].strip(" \t\r.,;`"):
        return None, []
    after = [line for line in text[end:].splitlines() if line.strip() and not _FENCE.match(line)]
    return value, before + after


def _strings(text: str, start: int) -> tuple[list[str] | None, int]:
    """Read a list of strings as Python writes it, and one that was cut off; None if it holds anything else."""
    found: list[str] = []
    position = start + 1
    while position < len(text):
        if text[position] in " \t\r\n,":
            position += 1
        elif text[position] == "]":
            return found, position + 1
        elif string := _STRING.match(text, position):
            found.append(_ESCAPE.sub(_unescaped, string[2]))
            position = string.end()
        elif text[position] in "\"'":
            break  # It was cut off.
        else:
            return None, position
    return found or None, len(text)


def _unescaped(escape: re.Match[str]) -> str:
    kind = escape[1]
    return chr(int(kind[1:], 16)) if len(kind) > 1 else _ESCAPES.get(kind, kind)


def _from_item(item: Any, num_sentences: int) -> Edit | None:
    """Read one item of a list: an edit as a line, or as an object with `op`, `number`, `text` and `reason`."""
    if isinstance(item, str):
        return _edit(item.strip(), num_sentences)
    if not isinstance(item, Mapping):
        return None
    op, number, text, reason = (item.get(key) for key in ("op", "number", "text", "reason"))
    if not isinstance(op, str) or isinstance(number, bool) or not isinstance(number, int | None):
        return None
    op = _SYNONYMS.get(op.lower(), op.lower())
    text, reason = (each if isinstance(each, str) else "" for each in (text, reason))
    return _made(op, None if number is None else number - 1, text.strip(), reason.strip(), num_sentences)


def _edit_blocks(text: str) -> Iterator[str]:
    """Yield each edit with the lines that its quoted text goes on for."""
    block: list[str] = []
    for line in text.splitlines():
        begins = _begins(line)
        if block and not begins:
            block.append(line)
            if _CLOSED.search(line):
                yield "\n".join(block)
                block = []
        elif begins:
            block = []  # One whose quotes were never closed was cut off.
            if _is_open(line):
                block = [line]
            else:
                yield line


def _begins(line: str) -> re.Match[str] | None:
    """Return the beginning of an edit if the line has one: "Add the numbers." is a sentence of an instruction."""
    match = _OP.match(line)
    if not match:
        return None
    rest = line[match.end() :].lstrip()[:1]
    return match if match[1].isupper() or match[2] or rest in (":", "|", '"', "“") else None


def _is_open(line: str) -> bool:
    """Whether a line begins a quoted text that does not end in it."""
    match = _OP.match(line)
    rest = line[match.end() :] if match else ""
    rest = rest[lead.end() :] if (lead := _LEAD.match(rest)) else rest
    return rest[:1] in ('"', "“") and not _QUOTED.match(rest)


def _edit(block: str, num_sentences: int) -> Edit | None:
    """Return the edit that a line, or a line with the rest of its quoted text, is; None if it is none or incomplete."""
    match = _begins(block)
    if not match:
        return None
    op = _SYNONYMS.get(match[1].lower(), match[1].lower())
    number = int(match[2]) - 1 if match[2] else None
    rest = block[match.end() :]
    rest = rest[lead.end() :] if (lead := _LEAD.match(rest)) else rest
    if rest[:1] in ('"', "“"):
        quoted = _QUOTED.match(rest)
        if not quoted:
            return None  # The reply was cut off.
        rest = f"{quoted[1]} BECAUSE {quoted[2]}" if quoted[2] else quoted[1]
    text, _, reason = rest.partition("BECAUSE")  # Of a quoted text too: some models put the reason inside.
    text, reason = text.strip(" |,;\n"), reason.strip(" :\n")
    text = text.removesuffix('"') if text.count('"') % 2 else text
    return _made(op, number, text, reason, num_sentences)


def _made(op: str, number: int | None, text: str, reason: str, num_sentences: int) -> Edit | None:
    if op == "add" and text:
        return Edit("add", num_sentences - 1 if number is None else number, text, reason)
    if number is None or (op == "replace" and not text):
        return None
    if op == "replace":
        return Edit("replace", number, text, reason)
    return Edit("delete", number, "", reason or text) if op == "delete" else None
