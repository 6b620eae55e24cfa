"""Packages that only benchmarks need, each of an extra."""

from __future__ import annotations

import importlib
from types import ModuleType


def extra(module: str, name: str = "bench") -> ModuleType:
    """Import a package of an extra.

    Args:
        module: What to import.
        name: The extra of dspy-dlpo that it belongs to.

    Returns:
        The module.

    Raises:
        ImportError: If it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        message = f"{module} is needed for this benchmark. Install the extra with: pip install 'dspy-dlpo[{name}]'"
        raise ImportError(message) from error
