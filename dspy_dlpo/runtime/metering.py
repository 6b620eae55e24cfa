"""Measuring what language models are asked for, whatever asks them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dspy
from dspy.utils.usage_tracker import UsageTracker

from dspy_dlpo.core.records import Spending
from dspy_dlpo.runtime.prices import Prices


class Abandoned(BaseException):
    """Ends a rollout that nobody waits for any more; no program catches it by mistake."""


class Meter(UsageTracker):  # type: ignore[misc]  # DSPy is untyped.
    """Counts the calls and tokens of everything below it, across threads, and reports them to the tracker above.

    DSPy deep-copies the tracker for each thread of `dspy.Parallel`; this one is the same object there too.

    The tracker above is DSPy's where the meter is made.

    Args:
        prices: What calls cost.

    Attributes:
        seconds: How long the metered block took, once it is over.
        is_closed: Whether nobody waits for the block any more: its next reply is not counted here, and ends it.
        history: DSPy's entries of the calls, which say what each cost.
    """

    def __init__(self, prices: Prices) -> None:
        super().__init__()
        self._parent = dspy.settings.usage_tracker
        self._prices = prices
        self._lock = threading.Lock()
        self.seconds = 0.0
        self.is_closed = False
        self.history: list[dict[str, Any]] = []

    def add_usage(self, lm: str, usage_entry: dict[str, Any]) -> None:
        """Count one call.

        Raises:
            Abandoned: If the meter is closed.
        """
        with self._lock:
            if self._parent is not None:
                self._parent.add_usage(lm, usage_entry)
            if self.is_closed:
                raise Abandoned
            self.usage_data[lm].append(usage_entry)

    @property
    def spent(self) -> Spending:
        """What has been spent below."""
        with self._lock:
            calls = [(model, usage) for model, usages in self.usage_data.items() for usage in usages]
        own = {id(entry["usage"]): entry.get("cost") for entry in [*self.history]}
        spent = Spending(seconds=self.seconds)
        for model, usage in calls:
            spent += Spending(
                lm_calls=1,
                input_tokens=usage.get("prompt_tokens") or usage.get("input_tokens") or 0,
                output_tokens=usage.get("completion_tokens") or usage.get("output_tokens") or 0,
                cost=self._prices.cost(model, usage, own.get(id(usage))),
            )
        return spent

    def __deepcopy__(self, memo: dict[int, Any]) -> Meter:
        return self


@contextmanager
def metered(prices: Prices | None = None, meter: Meter | None = None, **settings: Any) -> Iterator[Meter]:
    """Run a block under the given DSPy settings and measure what it spends; `meter.spent` is whole after the block.

    DSPy files every call in the `history` of the modules it was made in, the cost beside the very usage that it
    reports to the tracker. So the meter stands among those modules too.
    """
    meter = meter or Meter(prices or Prices())
    callers = [*(dspy.settings.caller_modules or []), meter]
    start = time.perf_counter()
    with dspy.context(usage_tracker=meter, caller_modules=callers, **settings):
        try:
            yield meter
        finally:
            meter.seconds = time.perf_counter() - start
