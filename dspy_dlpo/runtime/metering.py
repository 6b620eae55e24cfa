"""Measuring what language models are asked for, whatever asks them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import dspy
from dspy.utils.usage_tracker import UsageTracker

from dspy_dlpo.core.records import Spending
from dspy_dlpo.runtime.prices import Prices
from dspy_dlpo.runtime.trace import shorten

_MAX_CHARS = 20_000  # Of a string in DSPy's histories: a page of text is whole, an image is not.


class Abandoned(BaseException):
    """Ends an abandoned rollout; no program catches it by mistake."""


class Meter(UsageTracker):  # type: ignore[misc]  # DSPy is untyped.
    """Counts the calls and tokens of everything below it, across threads, and reports them to the tracker above.

    DSPy deep-copies the tracker for each thread of `dspy.Parallel`; this one is the same object there too. The tracker
    above is DSPy's where the meter is made.

    Args:
        prices: What calls cost.
        watch: Called with the messages of each call.

    Attributes:
        seconds: How long the metered block took, once it is over.
        is_closed: Whether the block was abandoned: its next reply is not counted here, and ends it.
    """

    def __init__(self, prices: Prices, watch: Callable[[Sequence[Mapping[str, Any]]], None] | None = None) -> None:
        super().__init__()
        self._parent = dspy.settings.usage_tracker
        self._prices = prices
        self._lock = threading.Lock()
        self._costs: dict[int, tuple[dict[str, Any], float | None]] = {}  # By the identity of the usage.
        self._num_empty = self._num_cut_off = 0
        self.watch = watch
        self.seconds = 0.0
        self.is_closed = False

    @property
    def history(self) -> Meter:
        """Where DSPy appends its entry of each call."""
        return self

    def __len__(self) -> int:
        return 0

    def __bool__(self) -> bool:
        return True

    def append(self, entry: dict[str, Any]) -> None:
        """Note what a call cost, and shorten its long contents in DSPy's histories, where they would stay."""
        self._costs[id(entry["usage"])] = entry["usage"], entry.get("cost")
        self._num_empty += _is_empty(entry)
        self._num_cut_off += _is_cut_off(entry)
        messages = entry.get("messages") or ()
        if self.watch:
            self.watch(messages)
        if (short := _short(messages)) != messages:
            entry["messages"] = short
            entry.pop("request", None)  # It holds the same contents.

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
        spent = Spending(seconds=self.seconds, empty_replies=self._num_empty, cut_off_replies=self._num_cut_off)
        for model, usage in calls:
            spent += Spending(
                lm_calls=1,
                input_tokens=usage.get("prompt_tokens") or usage.get("input_tokens") or 0,
                output_tokens=usage.get("completion_tokens") or usage.get("output_tokens") or 0,
                cost=self._prices.cost(model, usage, self._costs.get(id(usage), (usage, None))[1]),
            )
        return spent

    def tokens(self, before: Mapping[str, int] | None = None) -> dict[str, dict[str, Any]]:
        """Return the tokens by model as DSPy's `get_lm_usage` does, of the calls after those counted `before`."""
        tracker, before = UsageTracker(), before or {}
        with self._lock:
            for model, usages in self.usage_data.items():
                for usage in usages[before.get(model, 0) :]:
                    tracker.add_usage(model, usage)
        return tracker.get_total_tokens()  # type: ignore[no-any-return]  # DSPy is untyped.

    def counts(self) -> dict[str, int]:
        """Return the number of calls by model."""
        with self._lock:
            return {model: len(usages) for model, usages in self.usage_data.items()}

    def __deepcopy__(self, memo: dict[int, Any]) -> Meter:
        return self


def _is_empty(entry: Mapping[str, Any]) -> bool:
    """Whether a reply has neither text nor a call of a tool."""
    texts = [text for text in entry.get("outputs") or () if not isinstance(text, Mapping) or text.get("text")]
    calls = [text for text in entry.get("outputs") or () if isinstance(text, Mapping) and text.get("tool_calls")]
    return not calls and not any(str(text).strip() for text in texts)


def _is_cut_off(entry: Mapping[str, Any]) -> bool:
    """Whether a reply ended at the limit of its length, as told by DSPy's client or by litellm."""
    response = entry.get("response")
    choices = getattr(response, "choices", None) or [response]
    return any(getattr(choice, "finish_reason", None) == "length" for choice in choices)


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


def _short(thing: Any) -> Any:
    """Return a value with its long strings shortened."""
    if isinstance(thing, str):
        return shorten(thing, _MAX_CHARS)
    if isinstance(thing, Mapping):
        return {key: _short(value) for key, value in thing.items()}
    return [*map(_short, thing)] if isinstance(thing, (list, tuple)) else thing
