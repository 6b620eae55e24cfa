"""Packages that only benchmarks need."""

from __future__ import annotations

import importlib
from types import ModuleType


def extra(module: str) -> ModuleType:
    """Import a package of the extra `bench`.

    Raises:
        ImportError: If it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        message = f"{module} is needed for this benchmark. Install the extra with: pip install 'dspy-dlpo[bench]'"
        raise ImportError(message) from error
