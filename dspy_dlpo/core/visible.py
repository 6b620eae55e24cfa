"""Characters that would not be seen, made visible."""

from __future__ import annotations

import re

# Control characters steer a terminal, and those of the bidirectional algorithm turn what stands around them. Lone
# surrogates cannot be written at all. Line ends of Windows stay.
_UNSEEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]|\r(?!\n)")


def visible(text: str) -> str:
    r"""Return a text with its control characters written out, as in Python's literals.

    >>> visible("red: \x1b[31m, Windows:\r\n, overwrite:\r")
    'red: \\x1b[31m, Windows:\r\n, overwrite:\\r'
    """
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
