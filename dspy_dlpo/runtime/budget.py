"""What a run may spend, and what it has spent."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import dspy

from dspy_dlpo.core.records import Spending
from dspy_dlpo.runtime.prices import WAY_OUT, Prices, dollars

_logger = logging.getLogger(__name__)


class BudgetSpent(Exception):
    """The next calls would exceed a limit; the loop ends the run and concludes with what it has."""


@dataclass(frozen=True)
class Limits:
    """Limits of what a run may spend, each None for no limit; `DLPOOptimizer` documents them.

    Raises:
        ValueError: If a limit is not positive, or not an integer where things are counted.
    """

    max_metric_calls: int | None = None
    max_lm_calls: int | None = None
    max_tokens: int | None = None
    max_cost: float | None = None
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        for name, value in self.given.items():
            unit = {"max_cost": "dollars", "max_seconds": "seconds"}.get(name)
            kind = (int, float) if unit else int
            if isinstance(value, bool) or not isinstance(value, kind) or not 0 < value < math.inf:
                rule = f"a positive number of {unit}" if unit else "an integer of at least 1"
                raise ValueError(f"`{name}` must be {rule}, but got {name}={value!r}. None is no limit.")

    @property
    def given(self) -> dict[str, float]:
        """The limits that are set, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


def amounts(spent: Spending, seconds: float) -> dict[str, float]:
    """Return a spending in the units of the limits; `seconds` are by the clock, not added up over threads."""
    return {
        "max_metric_calls": spent.metric_calls,
        "max_lm_calls": spent.lm_calls,
        "max_tokens": spent.tokens,
        "max_cost": spent.cost or 0.0,
        "max_seconds": seconds,
    }


class Budget:
    """The spending of one run against its limits. Any thread may check.

    Args:
        limits: What may be spent.
        prices: What calls cost.
        num_threads: Rollouts in flight at once, to tell how long those kept back will take.
        stop_file: Once this file is there the budget is spent; the file is removed. None for no such file.

    Attributes:
        spent: What has been spent.
        reserve: Metric calls kept back for the final choice. Against the other limits they count with what a metric
            call has cost on average so far.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        prices: Prices | None = None,
        num_threads: int = 1,
        stop_file: Path | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.prices = prices or Prices()
        self.spent = Spending()
        self.reserve = 0
        self.num_threads = num_threads
        self._stop_file = stop_file
        self._stopped = ""
        self._rollouts = Spending()
        self._start = time.monotonic()
        self._lock = threading.Lock()

    def stop(self, reason: str) -> None:
        """Let every further check end the run, with this reason."""
        self._stopped = reason

    def remove_stop_file(self) -> None:
        """Remove the stop file, whatever it is; one that cannot be removed is not looked at again."""
        path = self._stop_file
        if path is None or not os.path.lexists(path):
            return
        try:
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        except OSError as error:
            self._stop_file = None
            _logger.warning("%s cannot be removed (%s). Remove it yourself.", path, error)

    def check(self, metric_calls: int = 0) -> None:
        """Raise `BudgetSpent` if the run was stopped, or a limit less the reserve is reached or would be exceeded.

        Asked before a batch of rollouts with their number, and again before each single rollout, critic and proposer
        call. So what is in flight when a limit is reached is all that can go beyond it, and nothing can go beyond
        `max_metric_calls`.
        """
        if self._stop_file is not None and os.path.lexists(self._stop_file):
            self.stop(f"stopped by {self._stop_file}")
            self.remove_stop_file()  # So that the same call can go on later.
        if self._stopped:
            raise BudgetSpent(self._stopped)
        with self._lock:
            spent, rollouts = self.spent, self._rollouts
        used = amounts(spent, time.monotonic() - self._start)
        mean = amounts(rollouts, rollouts.seconds / self.num_threads)
        for name, limit in self.limits.given.items():
            if name == "max_metric_calls":
                over = used[name] + self.reserve + metric_calls > limit
            else:
                over = used[name] + self.reserve * mean[name] / max(rollouts.metric_calls, 1) >= limit
            if over:
                kept = ", the rest is kept for the final choice" if used[name] < limit and self.reserve else ""
                raise BudgetSpent(f"{name}: {_number(name, used[name])} of {_number(name, limit)} spent{kept}")

    def charge(self, spent: Spending) -> None:
        """Add to the spending, whether it was paid now or by the run that this one resumes.

        Raises:
            ValueError: If there is a limit in dollars and the price of a call is not known, or one in tokens and a
                language model does not report them.
        """
        with self._lock:
            self.spent += spent
            if spent.metric_calls:
                self._rollouts += spent
        if spent.cost is None and self.limits.max_cost is not None:
            models = ", ".join(sorted(self.prices.unknown)) or "an earlier run"
            raise ValueError(
                f"`max_cost` needs the price of every call, but that of {models} is unknown. {WAY_OUT % 'MODEL'}, and "
                "a new `log_dir` if the run has one."
            )

        if self.limits.max_tokens is not None and spent.lm_calls and not spent.tokens:
            raise ValueError(
                "`max_tokens` needs the tokens of every call, but a language model reports none. Use `max_lm_calls`."
            )

    def progress(self, spent: Spending) -> str:
        """Return in words what has been spent, of metric calls and of whatever else is limited."""
        used, said = amounts(spent, 0.0), []
        for name in dict.fromkeys(["max_metric_calls", *self.limits.given]):
            if name != "max_seconds":
                limit = self.limits.given.get(name)
                unit = "" if name == "max_cost" else name.removeprefix("max").replace("_", " ").replace("lm", "LM")
                said.append(
                    _number(name, used[name]) + (f" of {_number(name, limit)}" if limit is not None else "") + unit
                )
        return ", ".join(said)


def _number(name: str, amount: float) -> str:
    if name == "max_cost":
        return dollars(amount)
    return f"{amount:.1f}" if name == "max_seconds" else f"{amount:.0f}"


def check_prices(budget: Budget, models: Iterable[dspy.BaseLM]) -> None:
    """Refuse a limit in dollars where one of the models has no known price.

    Raises:
        ValueError: Names the models.
    """
    if budget.limits.max_cost is None:
        return
    if unknown := budget.prices.look_up(lm.model for lm in models):
        raise ValueError(
            f"`max_cost` needs a price for {', '.join(unknown)}, but litellm's table has none. {WAY_OUT % unknown[0]}."
        )
