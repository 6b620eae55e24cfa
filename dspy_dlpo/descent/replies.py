"""How the proposer's reply is read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from dspy_dlpo.core.edits import Edit, align
from dspy_dlpo.core.sentences import split

_SYNONYMS = {"insert": "add", "modify": "replace", "remove": "delete"}
_OP = re.compile(
    r"^[\s>*\-•\d.)]*(add|insert|replace|modify|delete|remove)\b[\s*]*(?:(?:after|sentence|number|#)\s*)*(\d+)?",
    re.IGNORECASE,
)
_LEAD = re.compile(r"(?:\s|:|-|\||\bwith\b|\bby\b)+", re.IGNORECASE)
_QUOTED = re.compile(r"""["“](.*)["”][\s.,;|]*(?:BECAUSE\b:?\s*(.*))?$""", re.IGNORECASE)
_REASON = re.compile(r"\s*\bBECAUSE\b.*")


def read_edits(reply: str, sentences: Sequence[str]) -> list[Edit]:
    """Read the proposer's reply: lines of edits, or a whole new text, which is aligned with the old one.

    Args:
        reply: What the model wrote.
        sentences: The units of the instruction; the reply numbers them from 1.

    Returns:
        The edits in the order of the reply. Lines that are no edits are left out if there is any edit.
    """
    lines = [_edit(line, len(sentences)) for line in reply.splitlines()]
    if any(is_edit for is_edit, _ in lines) or not reply.strip():
        return [edit for _, edit in lines if edit is not None]
    text = _REASON.sub("", reply).strip()
    return [replace(edit, reason="from a whole rewrite") for edit in align(sentences, split(text))]


def _edit(line: str, num_sentences: int) -> tuple[bool, Edit | None]:
    """Return whether a line has the form of an edit, and the edit, if it is complete."""
    match = _OP.match(line)
    if not match:
        return False, None
    op = _SYNONYMS.get(match[1].lower(), match[1].lower())
    number = int(match[2]) - 1 if match[2] else None
    rest = line[match.end() :]
    if not (match[1].isupper() or number is not None or rest.lstrip()[:1] in (":", "|", '"', "“")):
        return False, None  # "Add the numbers." is a sentence of an instruction.
    rest = rest[lead.end() :] if (lead := _LEAD.match(rest)) else rest
    if rest[:1] in ('"', "“"):
        quoted = _QUOTED.match(rest)
        if not quoted:
            return True, None  # The reply was cut off.
        rest = f"{quoted[1]} BECAUSE {quoted[2]}" if quoted[2] else quoted[1]
    text, _, reason = rest.partition("BECAUSE")  # Of a quoted text too: some models put the reason inside.
    text, reason = text.strip(" |,;"), reason.strip(" :")
    text = text.removesuffix('"') if text.count('"') % 2 else text
    if op == "add":
        return True, Edit("add", num_sentences - 1 if number is None else number, text, reason)
    if number is None or (op == "replace" and not text):
        return True, None
    return True, Edit("replace", number, text, reason) if op == "replace" else Edit(
        "delete", number, "", reason or text
    )
