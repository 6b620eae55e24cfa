"""Whether what runs is what is tuned: told after the first minibatch, before much is spent."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence

from dspy_dlpo.core.records import Rollout

_logger = logging.getLogger(__name__)
_WAY_OUT = (
    "Keep each predictor in an attribute of a dspy.Module (or in a list or dict that is one), and call it from there."
)


def check_reach(predictors: Iterable[str], rollouts: Sequence[Rollout]) -> None:
    """Warn of predictors that a run cannot tune, and refuse a program in which it can tune none.

    Args:
        predictors: The predictors that may be optimised.
        rollouts: Of the student on the first minibatch.

    Raises:
        RuntimeError: If none of the predictors ran.
    """
    names, well = [*predictors], [rollout for rollout in rollouts if not rollout.error]
    if not well:
        return
    ran = {call.predictor for rollout in rollouts for call in rollout.calls}
    idle = [name for name in names if name not in ran]
    strangers = Counter(each for rollout in rollouts for each in rollout.strangers)
    others = ", ".join(f"`{each}` on {number} of {len(rollouts)} examples" for each, number in strangers.items())
    if len(idle) == len(names):
        instead = (
            f"What ran is no predictor of the program: {others}. {_WAY_OUT}"
            if others
            else "They may run in another process, or only after the program has returned: return a list in place of a "
            "generator."
        )
        raise RuntimeError(
            f"No predictor of the program ran on the {len(rollouts)} examples of the first minibatch, so none of them "
            f"can be tuned: {', '.join(names)}. {instead}"
        )
    if others:
        _logger.warning("Calls of predictors that are none of the program's are not tuned: %s. %s", others, _WAY_OUT)
    for name in idle:
        _logger.warning(
            "Predictor %s did not run on any of the %d examples of the first minibatch. It is tuned only on examples "
            "that reach it. If all should: %s",
            name,
            len(rollouts),
            _WAY_OUT,
        )
    for name, number in Counter(each for rollout in rollouts for each in rollout.unsent).items():
        _logger.warning(
            "The instruction of predictor %s stood in no prompt on %d of %d examples, so changing it changes nothing "
            "there. Let the adapter, or a `signature=` given at the call, use the predictor's own `signature`.",
            name,
            number,
            len(rollouts),
        )
