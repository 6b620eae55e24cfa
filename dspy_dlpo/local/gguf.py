"""Reads the head of a GGUF file, to refuse in words what would end the whole process inside the engine.

The engine maps the file into memory and trusts it: a file that was cut off is a bus error, and a kind of model that it
does not know is `unordered_map::at`.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any, BinaryIO

ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""The kinds of model that the engine's reader knows."""

SERVER = (
    "Serve it with a program that can, such as Ollama or llama.cpp's server, and use "
    "dspy.LM('openai/NAME', api_base='http://localhost:PORT/v1', api_key='none')."
)
"""The way out for everything that the engine cannot run."""

_MAGIC = b"GGUF"
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS = 4
_BLOCKS = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 8: (32, 34), 12: (256, 144), 14: (256, 210)}
"""Weights and bytes of a block, for each type of tensor that the engine reads."""
_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K",
    13: "Q5_K", 14: "Q6_K", 20: "IQ4_NL", 23: "IQ4_XS", 30: "BF16", 39: "MXFP4",
}  # fmt: skip


def check_gguf(path: Path) -> None:
    """Raise unless the engine can load the file.

    Raises:
        ValueError: If it is not a GGUF file, was cut off, or holds a kind of model or tensor that is not supported.
    """
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError(f"{path} is not a GGUF file: it does not start with {_MAGIC!r}. Give another file.")
        try:
            metadata, tensors = _head(file)
        except (struct.error, OverflowError, KeyError, MemoryError) as error:
            raise ValueError(f"{path} was cut off or is damaged. Delete it and fetch it again.") from error
        start = file.tell()
    architecture = metadata.get("general.architecture", "none")
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"{path} must hold a model of the kind {', '.join(ARCHITECTURES)}, but it is {architecture!r}, which the "
            f"local engine cannot run. {SERVER}"
        )
    unknown = sorted({kind for kind, _, _ in tensors} - _BLOCKS.keys())
    if unknown:
        names = ", ".join(_TYPES.get(kind, f"type {kind}") for kind in unknown)
        raise ValueError(
            f"{path} must hold tensors of {', '.join(_TYPES[kind] for kind in _BLOCKS)}, but has {names}, which the "
            f"local engine cannot read. Take the Q8_0 file of the model. {SERVER}"
        )
    alignment = metadata.get("general.alignment", 32)
    start = math.ceil(start / alignment) * alignment
    end = start + max((offset + _num_bytes(kind, size) for kind, size, offset in tensors), default=0)
    if path.stat().st_size < end:
        raise ValueError(
            f"{path} must have {end} bytes, but was cut off after {path.stat().st_size}. Delete it and fetch it again."
        )


def _num_bytes(kind: int, size: int) -> int:
    weights, num_bytes = _BLOCKS[kind]
    return size // weights * num_bytes


def _head(file: BinaryIO) -> tuple[dict[str, Any], list[tuple[int, int, int]]]:
    """Return the metadata that are not lists, and type, number of weights and offset of each tensor."""
    _scalar(file, "I")  # The version of the format: 2 and 3 have the same layout.
    num_tensors, num_entries = _scalar(file, "Q"), _scalar(file, "Q")
    metadata = {}
    for _ in range(num_entries):
        name = _string(file)
        metadata[name] = _value(file, _scalar(file, "I"))
    tensors = []
    for _ in range(num_tensors):
        _string(file)
        dimensions = _scalar(file, "I")
        if dimensions > _MAX_DIMENSIONS:
            raise OverflowError
        size = math.prod(_scalar(file, "Q") for _ in range(dimensions))
        kind, offset = _scalar(file, "I"), _scalar(file, "Q")
        tensors.append((kind, size, offset))
    return metadata, tensors


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _string(file)
    if kind != _ARRAY:
        return _scalar(file, _SCALARS[kind])
    kind, length = _scalar(file, "I"), _scalar(file, "Q")
    if kind in _SCALARS:
        file.seek(length * struct.calcsize(f"<{_SCALARS[kind]}"), 1)
    else:
        for _ in range(length):
            _value(file, kind)
    return None


def _string(file: BinaryIO) -> str:
    length = _scalar(file, "Q")
    text = file.read(length)
    if len(text) < length:
        raise struct.error("cut off")
    return text.decode("utf-8", errors="replace")


def _scalar(file: BinaryIO, form: str) -> Any:
    (value,) = struct.unpack(f"<{form}", file.read(struct.calcsize(f"<{form}")))
    return value
