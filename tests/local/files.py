"""Small GGUF files, whole and broken."""

from __future__ import annotations

import struct
from pathlib import Path


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def write_gguf(path: Path, *, architecture: str = "qwen2", kind: int = 0, num_weights: int = 64) -> Path:
    """Write a file of one tensor, with the metadata that a real one has: a text, a number, and lists of both."""
    metadata = [
        _string("general.architecture") + struct.pack("<I", 8) + _string(architecture),
        _string(f"{architecture}.block_count") + struct.pack("<II", 4, 1),
        _string("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + _string("one") + _string("two"),
        _string("tokenizer.ggml.token_type") + struct.pack("<IIQ2i", 9, 5, 2, 1, 1),
    ]
    tensor = _string("token_embd.weight") + struct.pack("<IQQIQ", 2, num_weights // 2, 2, kind, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(metadata)) + b"".join(metadata) + tensor
    padding = b"\0" * (-len(head) % 32)
    path.write_bytes(head + padding + b"\1" * (4 * num_weights))
    return path
