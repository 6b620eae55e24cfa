"""Dollars for tokens."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

Price = tuple[float, float]
"""Dollars per million input tokens, dollars per million output tokens."""

FREE = ("local/", "simulated/")
"""How the names of models begin that cost nothing: those of `dspy_dlpo.local`, and simulated ones."""

WAY_OUT = "Give `prices={%r: (dollars per million input tokens, dollars per million output tokens)}`"


class Prices:
    """What calls cost: by the user's prices, else by the LM's own word (DSPy's), else by litellm's price table.

    The table is read only for models that `look_up` was asked about; it knows no discounts, so that what it says is
    rather too much. An unknown price is None, never 0.

    Args:
        given: The user's prices, by the name of the model as in `lm.model`.

    Attributes:
        unknown: Models that were called and have no known price.

    Raises:
        ValueError: If a price is not a pair of numbers of at least 0.
    """

    def __init__(self, given: Mapping[str, Price] | None = None) -> None:
        self._given: dict[str, Price] = {}
        self._listed: dict[str, Price | None] = {}
        self.unknown: set[str] = set()
        if not isinstance(given or {}, Mapping):
            raise ValueError(f"`prices` must be a dict, but got prices={given!r}. {WAY_OUT % 'MODEL'}.")
        for model, price in (given or {}).items():
            numbers = [isinstance(each, (int, float)) for each in price] if isinstance(price, (list, tuple)) else []
            if numbers != [True, True] or not all(0 <= each < math.inf for each in price):
                raise ValueError(
                    f"`prices` must hold pairs of numbers of at least 0, but got {model!r}: {price!r}. "
                    f"{WAY_OUT % model}."
                )
            self._given[model] = (price[0], price[1])

    def look_up(self, models: Iterable[str]) -> list[str]:
        """Read the prices of the models in litellm's table where they are not given; return those not found."""
        models = sorted({*models})
        for model in models:
            if self._fixed(model) is None and model not in self._listed:
                self._listed[model] = _listed(model)
        return [model for model in models if self.of(model) is None]

    def of(self, model: str) -> Price | None:
        """Return the price of a model, None if it is not known."""
        return self._fixed(model) or self._listed.get(model)

    def cost(self, model: str, usage: Mapping[str, Any], own: float | None = None) -> float | None:
        """Return what one call cost in dollars, None if that is not known.

        Args:
            model: Its model.
            usage: The tokens as the LM reported them.
            own: What the LM itself says it cost.
        """
        price = self._fixed(model)
        if price is None and own is not None:
            return own
        price = price or self._listed.get(model)
        tokens = [usage.get("prompt_tokens", usage.get("input_tokens"))]
        tokens += [usage.get("completion_tokens", usage.get("output_tokens"))]
        if price is None or (any(price) and None in tokens):
            self.unknown.add(model)
            return None
        return sum(amount * (number or 0) for amount, number in zip(price, tokens, strict=True)) / 1e6

    def _fixed(self, model: str) -> Price | None:
        return self._given.get(model) or ((0.0, 0.0) if model.startswith(FREE) else None)


def entry_of(model: str) -> Mapping[str, Any]:
    """Return what litellm's table says of a model, found by its whole name or by that after its provider's."""
    table = _table()
    provider, _, name = model.partition("/")
    entry = table.get(model)
    if entry is None and name and str((table.get(name) or {}).get("litellm_provider", "")).startswith(provider):
        entry = table[name]
    return entry or {}


def _listed(model: str) -> Price | None:
    entry = entry_of(model)
    sent, received = (entry.get(f"{side}_cost_per_token") for side in ("input", "output"))
    if not isinstance(sent, (int, float)) or not isinstance(received, (int, float)):
        return None
    return sent * 1e6, received * 1e6


def _table() -> Mapping[str, Any]:
    """Return litellm's table. Its file is read, since importing litellm takes seconds and may ask the network."""
    if loaded := sys.modules.get("litellm"):
        return dict(loaded.model_cost)
    return _file()


@lru_cache(maxsize=1)
def _file() -> Mapping[str, Any]:
    spec = find_spec("litellm")
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder, "model_prices_and_context_window_backup.json")
        if path.is_file():
            return dict(json.loads(path.read_text(encoding="utf-8")))
    return {}


def dollars(amount: float | None) -> str:
    """Return an amount in words: two decimals, for small ones two digits.

    >>> dollars(1234.5), dollars(0.00123), dollars(None)
    ('$1,234.50', '$0.0012', 'dollars unknown')
    """
    if amount is None:
        return "dollars unknown"
    return f"${amount:,.2f}" if amount >= 0.1 or not amount else f"${amount:.2g}"
