"""Update policies, one file each, and the presets made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dspy_dlpo.policies.annealing import TextualSimulatedAnnealing
from dspy_dlpo.policies.base import Policy, State, StepContext
from dspy_dlpo.policies.chain import Chain
from dspy_dlpo.policies.contrastive import TextualContrastiveLearning
from dspy_dlpo.policies.decay import TextualLearningRateDecay
from dspy_dlpo.policies.dropout import TextualDropout
from dspy_dlpo.policies.learning_rate import TextualLearningRate
from dspy_dlpo.policies.momentum import TextualMomentum
from dspy_dlpo.policies.regularization import TextualRegularization
from dspy_dlpo.policies.schedules import exponential

PRESETS: dict[str, Callable[[], list[Policy]]] = {
    "none": list,
    "default": lambda: [TextualLearningRate(8), TextualSimulatedAnnealing(), TextualRegularization()],
    "robust": lambda: [TextualLearningRate(3), TextualDropout(0.3), TextualSimulatedAnnealing()],
    "concise": lambda: [TextualLearningRate(4), TextualRegularization(price=5e-4, growth=2)],
    "paper": lambda: [
        TextualLearningRate(5),
        TextualDropout(),
        TextualSimulatedAnnealing(exponential(1.0, 0.5), max_drop=0.3),
        TextualLearningRateDecay(),
        TextualMomentum(),
        TextualContrastiveLearning(),
        TextualRegularization(price=1e-4, growth=2),
    ],
}
"""What makes each preset, by its name; every call makes new policies: `[*PRESETS["robust"](), TextualMomentum()]`.

`"paper"` has the seven strategies of Peng et al., DLPO, arXiv 2503.13413; the others are choices of ours among them.
"""


def as_policies(policies: str | Sequence[Policy]) -> tuple[Policy, ...]:
    """Return the policies of a preset, or the given ones.

    Raises:
        ValueError: If there is no preset of that name.
        TypeError: If something in the list is not a `Policy`.
    """
    if isinstance(policies, str):
        if policies not in PRESETS:
            raise ValueError(f"`policies` must be a list or one of {sorted(PRESETS)}, but got {policies!r}.")
        return tuple(PRESETS[policies]())
    if not isinstance(policies, (list, tuple)):
        raise TypeError(f"`policies` must be a list of policies or the name of a preset, but got {policies!r}.")
    for policy in policies:
        if not isinstance(policy, Policy):
            hint = " Did you forget the parentheses?" if isinstance(policy, type) else ""
            raise TypeError(f"`policies` must hold Policy objects, but got {policy!r}.{hint}")
    return tuple(policies)


__all__ = [
    "PRESETS",
    "Chain",
    "Policy",
    "State",
    "StepContext",
    "TextualContrastiveLearning",
    "TextualDropout",
    "TextualLearningRate",
    "TextualLearningRateDecay",
    "TextualMomentum",
    "TextualRegularization",
    "TextualSimulatedAnnealing",
    "as_policies",
]
