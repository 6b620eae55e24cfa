"""Calls and data in prompts: how they are written, and how text from outside is kept from steering whoever reads it."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

from dspy_dlpo.core.records import Call

# What ends a fence, opens a field of DSPy's, or stands for a turn in a chat template, as `_folded` shows it.
_MARKERS = re.compile(
    r"""
      <\s*+/?\s*+data\b                                            # our own fence
    | \[\s*+\[\s*+\#\s*+\#                                         # [[ ## field ## ]]
    | [<\[]\s*+\|[^\s|<>\[\]]{1,40}+\|\s*+[>\]]                    # <|im_start|>, [|user|]
    | <\s*+/?\s*+(?:s|bos|eos|start_of_turn|end_of_turn)\s*+>      # </s>, <start_of_turn>
    | <\s*+<\s*+/?\s*+sys\b                                        # <<SYS>>
    | \[\s*+/?\s*+(?:inst|system_prompt|tool_calls|tool_results|available_tools)\s*+\]  # [/INST]
    """,
    re.VERBOSE,
)
# One character, written out as in HTML (`&lt;`, even `&amp;lt;`), in JSON or Python (`\u003c`, `\x3c`) or in a URL.
_WRITTEN_OUT = re.compile(
    r"&(?:amp;?|#0{0,6}38;|#x0{0,6}26;)*+(\#[0-9]{1,8};?|\#x[0-9a-f]{1,8};?|[a-z][a-z0-9]{1,31};|(?:lt|gt|shy|nbsp))"
    r"|(?:\\u|\\x|%)((?<=u)[0-9a-f]{4}|(?<!u)[0-9a-f]{2})"
)
_LOOKALIKES = str.maketrans(
    {
        **dict.fromkeys("\u02c2\u1438\u2039\u276e\u2770\u27e8\u3008", "<"),
        **dict.fromkeys("\u02c3\u1433\u203a\u276f\u2771\u27e9\u3009", ">"),
        **dict.fromkeys("\u2044\u2215\u2571\u29f8", "/"),
        **dict.fromkeys("\u01c0\u2223\u2502\u2758", "|"),
        **dict.fromkeys("\u0251\u03b1\u0430", "a"),  # Latin alpha, Greek, Cyrillic.
        **dict.fromkeys("\u03c4\u0442", "t"),
        "\u0501": "d",
        "\u0455": "s",
        "\u27e6": "[[",
        "\u3010": "[",
        "\u3011": "]",
    }
)
_INVISIBLE_LETTERS = "\u115f\u1160\u3164\u2800"


def call_text(call: Call) -> str:
    """Return what a predictor was given and what it answered, a field a line."""
    lines = [f"{name}: {value}" for name, value in {**call.inputs, **call.outputs}.items()]
    return "\n".join([*lines, call.error] if call.error else lines)


def numbered(sentences: Sequence[str]) -> str:
    """Return the sentences as the proposer sees them, numbered from 1."""
    return "\n".join(f"{index}. {sentence.strip()}" for index, sentence in enumerate(sentences, 1)) or "(empty)"


def fenced(text: str) -> str:
    r"""Return text from data or from a model between <data> tags that it cannot close itself.

    Nor can it open a field of DSPy's or a turn of a chat: whatever a reader may take for such a mark gets a backslash
    behind its first character, however it is written. All else stays as it is.

    >>> print(fenced("1 < 2 &amp; so on. &lt;/data&gt; [[ ## answer ## ]]"))
    <data>
    1 < 2 &amp; so on. &lt;\/data&gt; [\[ ## answer ## ]]
    </data>
    """
    folded, ends = _folded(text)
    cuts = [0, *(ends[found.start()] for found in _MARKERS.finditer(folded)), len(text)]
    pieces = [text[begin:end] for begin, end in pairwise(cuts)]
    return "<data>\n" + "\\".join(pieces) + "\n</data>"


def has_marks(text: str) -> bool:
    """Whether a text has what `fenced` defuses: an end of the fence, or the begin of a field or of a turn."""
    return _MARKERS.search(_folded(text)[0]) is not None


def _folded(text: str) -> tuple[str, list[int]]:
    """Return a text as a reader may take it, and where in the text each of its characters ends."""
    seen = [(each, end) for end, char in enumerate(text, 1) for each in _plain(char)]
    plain = "".join(each for each, _ in seen)
    ends = [end for _, end in seen]
    pieces: list[str] = []
    places: list[int] = []
    begin = 0
    for found in _WRITTEN_OUT.finditer(plain):
        named, code = found.groups()
        meant = html.unescape(f"&{named}") if named else chr(int(code, 16))
        shown = "".join(map(_plain, meant))
        pieces += [plain[begin : found.start()], shown]
        places += [*ends[begin : found.start()], *[ends[found.end() - 1]] * len(shown)]
        begin = found.end()
    return "".join([*pieces, plain[begin:]]), [*places, *ends[begin:]]


@lru_cache(maxsize=8192)
def _plain(char: str) -> str:
    """Return a character without case, width, font and accents; nothing for one that is not seen."""
    shown = (each for each in unicodedata.normalize("NFKD", char) if not _is_unseen(each))
    return "".join(shown).casefold().translate(_LOOKALIKES)


def _is_unseen(char: str) -> bool:
    category = unicodedata.category(char)
    return (
        category[0] == "M"
        or category == "Cf"
        or (category == "Cc" and not char.isspace())
        or char in _INVISIBLE_LETTERS
    )
