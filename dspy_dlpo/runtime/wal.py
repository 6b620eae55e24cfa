"""Whether a write-ahead log of SQLite is whole: its last frames may be missing, as after a death, but none in between.

SQLite takes a log up to the first frame that it cannot read, and drops the others without a word.

References:
    The format is described at https://www.sqlite.org/fileformat2.html#the_write_ahead_log.
"""

from __future__ import annotations

import struct
from pathlib import Path

_MAGIC = (0x377F0682, 0x377F0683)  # The last bit says in which byte order checksums are made.
_HEADER, _FRAME_HEADER = 32, 24


def is_whole(path: Path) -> bool:
    """Whether every frame is readable up to the one at which writing ended; true of a log that is absent or empty."""
    try:
        log = path.read_bytes()
    except FileNotFoundError:
        return True
    if len(log) < _HEADER:
        return True
    magic, _, page_size = struct.unpack(">3I", log[:12])
    if magic not in _MAGIC or not 512 <= page_size <= 65536:
        return False
    order = ">" if magic & 1 else "<"
    salts, sums = log[16:24], _checksum(order, log[:24], (0, 0))
    if sums != struct.unpack(">2I", log[24:32]):
        return False
    size = _FRAME_HEADER + page_size
    starts = range(_HEADER, len(log) - size + 1, size)
    for start in starts:
        header, page = log[start : start + _FRAME_HEADER], log[start + _FRAME_HEADER : start + size]
        sums = _checksum(order, header[:8] + page, sums)
        if header[8:16] != salts or sums != struct.unpack(">2I", header[16:24]):
            rest = range(start + size, len(log) - size + 1, size)
            return not any(log[other + 8 : other + 16] == salts for other in rest)
    return True


def _checksum(order: str, content: bytes, sums: tuple[int, int]) -> tuple[int, int]:
    one, two = sums
    words = struct.unpack(f"{order}{len(content) // 4}I", content)
    for first, second in zip(words[::2], words[1::2], strict=True):
        one = (one + first + two) & 0xFFFFFFFF
        two = (two + second + one) & 0xFFFFFFFF
    return one, two
