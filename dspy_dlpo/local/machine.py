"""Whether this machine can run a model, asked before the engine ends the process or the system does."""

from __future__ import annotations

import platform
from pathlib import Path

from dspy_dlpo.local.gguf import SERVER
from dspy_dlpo.local.weights import import_extra

_CGROUP = Path("/sys/fs/cgroup")
_UNPACKED = 3.0  # Memory that the loaded weights take, over the size of the file.


def check_machine(file_bytes: int, cache_bytes: int) -> None:
    """Raise unless the processor and the free memory suffice for a model.

    Raises:
        RuntimeError: If the processor lacks AVX2.
        MemoryError: If too little memory is free.
    """
    if platform.machine().lower() in {"x86_64", "amd64"} and not _has_avx2():
        raise RuntimeError(f"The local model needs a processor with AVX2, which this one lacks. {SERVER}")
    needed, free = int(_UNPACKED * file_bytes) + cache_bytes, free_memory()
    if free < needed:
        raise MemoryError(
            f"The local model needs about {needed / 2**30:.1f} GB of memory, but {free / 2**30:.1f} GB are free. Close "
            f"other programs, give `model` a smaller file, or use a model that runs elsewhere: dspy.LM('openai/NAME')."
        )


def free_memory() -> int:
    """Return the bytes that this process may still take, a container's limit counted."""
    free = int(import_extra("psutil").virtual_memory().available)
    try:
        limit, used, stat = ((_CGROUP / f"memory.{name}").read_text().strip() for name in ("max", "current", "stat"))
    except OSError:  # Not Linux, or no container.
        return free
    if limit == "max":
        return free
    files = dict(line.split() for line in stat.splitlines())["inactive_file"]  # The system gives these up first.
    return min(free, int(limit) - int(used) + int(files))


def _has_avx2() -> bool:
    features = import_extra("numpy._core._multiarray_umath").__cpu_features__
    return bool(features["AVX2"])
