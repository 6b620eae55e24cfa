"""Characters that would not be seen, made visible."""

from __future__ import annotations

import re

# Control characters steer a terminal, and those of the bidirectional algorithm turn what stands around them. Lone
# surrogates cannot be written at all. Line ends of Windows stay.
_UNSEEN = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]|\r(?!\n)"
)


def visible(text: str) -> str:
    r"""Return a text with its control characters written out, as in Python's literals.

    >>> visible("red: \x1b[31m, Windows:\r\n, overwrite:\r")
    'red: \\x1b[31m, Windows:\r\n, overwrite:\\r'
    """
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def visible_json(text: str) -> str:
    r"""Return JSON that means the same, with its control characters as JSON's escapes.

    >>> visible_json('{"a": "\x9b31m \u202e"}')
    '{"a": "\\u009b31m \\u202e"}'
    """
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
