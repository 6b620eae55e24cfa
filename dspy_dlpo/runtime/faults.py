"""What may fail in a run that is not the fault of an instruction, and when that ends the run."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

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

FATAL = (LMAuthError, LMBillingError, LMConfigurationError, LMUnsupportedModelError)
"""Errors of a language model that no retry can mend: they end a run."""

GOES_ON = "With a `log_dir`, what was paid is kept there, and the same call goes on once this is mended."
"""How the message of an error that a later session can mend ends."""

_RECENT, _FEW = 50, 20  # Rollouts.


class Faults:
    """Stops a run that loses too many rollouts.

    Args:
        max_lost_share: Share of the last 50 rollouts that may be lost; asked once there are 20.
    """

    def __init__(self, max_lost_share: float) -> None:
        self._max_lost_share = max_lost_share
        self._recent: deque[bool] = deque(maxlen=_RECENT)

    def count(self, rollout: Rollout) -> None:
        """Count a rollout.

        Raises:
            RuntimeError: If too many of the last ones were lost.
        """
        self._recent.append(rollout.lost)
        if rollout.lost and len(self._recent) >= _FEW and fmean(self._recent) > self._max_lost_share:
            raise RuntimeError(
                f"{sum(self._recent)} of the last {len(self._recent)} rollouts were lost, which is more than "
                f"max_lost_share={self._max_lost_share}. The last error was: {rollout.error}. {GOES_ON}"
            )


def is_outside(problem: BaseException) -> bool:
    """Whether a language model failed for reasons outside the request: a rollout with that problem is lost."""
    return isinstance(problem, LMError) and not isinstance(problem, LMInvalidRequestError)


def unbroken(call: Callable[[], Any]) -> Any:
    """Call, and once more if a reply was broken on its way, which is the failure that DSPy's client does not retry."""
    try:
        return call()
    except LMError as error:
        if type(error) is not LMProviderError:  # Its subclasses say more: limits, refusals, failures of the server.
            raise
        return call()


def check_first_minibatch(rollouts: Sequence[Rollout]) -> None:
    """Raise if every rollout of a run's first minibatch failed: then it is not the instructions that are wrong.

    Replies that could not be parsed do not count: those an instruction can mend.
    """
    if rollouts and all(rollout.error and "AdapterParseError" not in rollout.error for rollout in rollouts):
        raise RuntimeError(
            f"Program or metric failed on all {len(rollouts)} examples of the first minibatch, which leaves nothing to "
            f"learn from. The first error was: {rollouts[0].error}"
        )
