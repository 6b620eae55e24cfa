"""What may fail in a run that is not the fault of an instruction, and when that ends the run."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

import dspy
from dspy.utils.exceptions import (
    LMAuthError,
    LMBillingError,
    LMConfigurationError,
    LMError,
    LMInvalidRequestError,
    LMProviderError,
    LMUnsupportedModelError,
)

from dspy_dlpo.core.records import Rollout
from dspy_dlpo.runtime.budget import BudgetSpent
from dspy_dlpo.runtime.data import place

FATAL = (LMAuthError, LMBillingError, LMConfigurationError, LMUnsupportedModelError)
"""Errors of a language model that no retry can mend: they end a run."""

GOES_ON = "With a `log_dir`, what was paid is kept there, and the same call goes on once this is mended."
"""How the message of an error that a later session can mend ends."""

_RECENT, _FEW, _REFUSALS = 50, 20, 12  # Rollouts.
_MAX_CHARS = 300  # Of an error that is told.
_logger = logging.getLogger(__name__)


class Outage(BudgetSpent, RuntimeError):
    """A language model fails again and again: the run ends with what it has found.

    Attributes:
        lost: Rollouts that are lost by it, though they counted as failures of the program until now.
    """

    lost: tuple[Rollout, ...] = ()


class Faults:
    """Stops a run that loses too many rollouts, and tells of errors, each kind once.

    Args:
        max_lost_share: Share of the last 50 rollouts that may be lost; asked once there are 20.
    """

    def __init__(self, max_lost_share: float) -> None:
        self._max_lost_share = max_lost_share
        self._recent: deque[bool] = deque(maxlen=_RECENT)
        self._answered: set[str] = set()
        self._refusals: list[Rollout] = []
        self._told: set[str] = set()

    def count(self, rollout: Rollout) -> None:
        """Count a rollout.

        Raises:
            Outage: If too many of the last ones were lost, or nothing but refusals came of the last ones, those of
                candidates that were answered before among them: then it is not what they ask.
        """
        self._tell(rollout)
        if rollout.refused:
            self._refusals.append(rollout)
        elif not rollout.lost:
            self._refusals.clear()
            self._answered.add(rollout.candidate)
        answered = sum(each.candidate in self._answered for each in self._refusals)
        if len(self._refusals) >= _REFUSALS and answered >= _REFUSALS // 2:
            outage = Outage(
                f"The last {len(self._refusals)} rollouts were refused by a language model that had answered before. "
                f"The last error was: {short(rollout.error)}. {GOES_ON}"
            )
            outage.lost = tuple(self._refusals)
            raise outage
        self._recent.append(rollout.lost)
        if rollout.lost and len(self._recent) >= _FEW and fmean(self._recent) > self._max_lost_share:
            raise Outage(
                f"{sum(self._recent)} of the last {len(self._recent)} rollouts were lost, which is more than "
                f"max_lost_share={self._max_lost_share}. The last error was: {short(rollout.error)}. {GOES_ON}"
            )

    def _tell(self, rollout: Rollout) -> None:
        """Log the first error of each kind.

        The log, and not `warnings.warn`: a run that was paid for must not end where warnings are errors.
        """
        kind = rollout.error.partition(":")[0]
        if not rollout.error or kind in self._told:
            return
        self._told.add(kind)
        effect = "is lost" if rollout.lost else f"scores {rollout.score:g}, as for every error of the program or metric"
        _logger.warning(
            "%s failed, the first with this kind of error, and %s: %s. To see the traceback of each error: "
            "logging.basicConfig(); logging.getLogger('dspy_dlpo').setLevel(logging.DEBUG).",
            place(rollout.example),
            effect,
            short(rollout.error),
        )


def short(problem: str) -> str:
    """Return the first line of an error: those of DSPy go on with advice."""
    return problem.strip().partition("\n")[0][:_MAX_CHARS].rstrip(". ")


def is_refusal(problem: BaseException) -> bool:
    """Whether a language model refused a request."""
    return isinstance(problem, LMInvalidRequestError)


def is_outside(problem: BaseException) -> bool:
    """Whether a language model failed for reasons outside the request: a rollout with that problem is lost."""
    return isinstance(problem, LMError) and not isinstance(problem, LMInvalidRequestError)


def retries_of(lm: dspy.BaseLM) -> int:
    """Return how often a language model tries again, as its user has set it."""
    return getattr(lm, "num_retries", None) or 0


def unbroken(call: Callable[[], Any], num_retries: int) -> Any:
    """Call, and again if a reply was broken on its way, which is the failure that DSPy's client does not retry."""
    for _ in range(num_retries):
        try:
            return call()
        except LMError as error:
            if type(error) is not LMProviderError:  # Its subclasses say more: limits, refusals, failures of the server.
                raise
    return call()


def check_first_minibatch(rollouts: Sequence[Rollout]) -> None:
    """Raise if every rollout of a run's first minibatch failed: then it is not the instructions that are wrong.

    Replies of the program that could not be parsed do not count: those an instruction can mend, but not those of a
    judge inside the metric.
    """
    if rollouts and all(rollout.error and not rollout.error.startswith("AdapterParseError") for rollout in rollouts):
        raise RuntimeError(
            f"Program or metric failed on all {len(rollouts)} examples of the first minibatch, which leaves nothing to "
            f"learn from. The first error was: {rollouts[0].error}"
        )
