"""What a run may spend, and what it has spent."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dspy
from dspy.utils.usage_tracker import UsageTracker

from dspy_dlpo.records import Spending


class BudgetSpent(Exception):
    """The next calls would exceed a limit; the loop ends the run and concludes with what it has."""


class Budget:
    """The spending of one run against its limits.

    Args:
        max_metric_calls: Most runs of the program on an example; None for no limit.

    Attributes:
        spent: What has been spent.
        reserve: Metric calls kept back for the final choice.
    """

    def __init__(self, max_metric_calls: int | None) -> None:
        self.max_metric_calls = max_metric_calls
        self.spent = Spending()
        self.reserve = 0

    def check(self, metric_calls: int) -> None:
        """Raise `BudgetSpent` if that many metric calls more would not leave the reserve untouched."""
        limit = self.max_metric_calls
        if limit is not None and self.spent.metric_calls + metric_calls + self.reserve > limit:
            raise BudgetSpent

    def charge(self, spent: Spending) -> None:
        """Add to the spending, whether it was paid now or by the run that this one resumes."""
        self.spent += spent


class Meter(UsageTracker):  # type: ignore[misc]  # DSPy is untyped.
    """Counts the calls and tokens of everything below it, across threads, and reports them to the tracker above.

    DSPy deep-copies the tracker for each thread of `dspy.Parallel`; this one is the same object there too.
    """

    def __init__(self, parent: UsageTracker | None) -> None:
        super().__init__()
        self._parent = parent
        self._lock = threading.Lock()
        self.spent = Spending()

    def add_usage(self, lm: str, usage_entry: dict[str, Any]) -> None:
        """Count one call."""
        with self._lock:
            self.spent += Spending(
                lm_calls=1,
                input_tokens=usage_entry.get("prompt_tokens") or usage_entry.get("input_tokens") or 0,
                output_tokens=usage_entry.get("completion_tokens") or usage_entry.get("output_tokens") or 0,
            )
            if self._parent is not None:
                self._parent.add_usage(lm, usage_entry)

    def __deepcopy__(self, memo: dict[int, Any]) -> Meter:
        return self


@contextmanager
def metered(**settings: Any) -> Iterator[Meter]:
    """Run a block under the given DSPy settings and measure what it spends; `meter.spent` is whole after the block."""
    meter = Meter(dspy.settings.usage_tracker)
    start = time.perf_counter()
    with dspy.context(usage_tracker=meter, **settings):
        try:
            yield meter
        finally:
            meter.spent += Spending(seconds=time.perf_counter() - start)
