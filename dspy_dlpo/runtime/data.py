"""The examples of a run, by name, checked and split."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import dspy

_HOLD_OUT_FROM = 20
_HOLD_OUT_SHARE = 0.4
_HOLD_OUT_MOST = 50


@dataclass(frozen=True)
class Data:
    """Train and validation examples. A name is `train:INDEX` or `val:INDEX`, the index into what the user gave.

    Attributes:
        trainset: Names of the examples that decide the walk.
        valset: Names of the examples that choose the result.
        held_out: Where the valset is from: `given`, `part of the trainset`, or `the trainset itself`.
    """

    given_trainset: Sequence[dspy.Example]
    given_valset: Sequence[dspy.Example]
    trainset: tuple[str, ...]
    valset: tuple[str, ...]
    held_out: str

    def __getitem__(self, name: str) -> dspy.Example:
        kind, _, index = name.partition(":")
        given = self.given_valset if kind == "val" else self.given_trainset
        return given[int(index)]


def place(name: str) -> str:
    """Return where the user finds an example: `train:3` is `trainset[3]`."""
    kind, _, index = name.partition(":")
    return f"{kind}set[{index}]"


def check_examples(name: str, examples: Sequence[dspy.Example]) -> None:
    """Raise unless there are examples and each has inputs; `name` is what the user calls them."""
    if not examples:
        raise ValueError(f"`{name}` must hold at least one example, but it is empty.")
    for index, example in enumerate(examples):
        if not isinstance(example, dspy.Example):
            raise TypeError(f"{name}[{index}] must be a dspy.Example, but got {example!r}.")
        if not getattr(example, "_input_keys", None):
            raise ValueError(f"{name}[{index}] has no inputs. Name them with example.with_inputs('question', ...).")


def prepare(trainset: Sequence[dspy.Example], valset: Sequence[dspy.Example] | None, seed: int) -> Data:
    """Check the examples, and hold out a valset if none is given and the trainset is large enough.

    Raises:
        TypeError: If something is not a `dspy.Example`.
        ValueError: If the trainset is empty or an example has no inputs.
    """
    check_examples("trainset", trainset)
    if valset:
        check_examples("valset", valset)
        order = list(range(len(valset)))
        random.Random(f"{seed}/valset").shuffle(order)  # A comparison that stops early needs them in random order.
        return Data(trainset, valset, _names("train", range(len(trainset))), _names("val", order), "given")
    indices = list(range(len(trainset)))
    if len(trainset) < _HOLD_OUT_FROM:
        train, val, origin = (
            indices,
            random.Random(f"{seed}/valset").sample(indices, len(indices)),
            "the trainset itself",
        )
    else:
        random.Random(f"{seed}/hold out").shuffle(indices)
        size = min(int(len(trainset) * _HOLD_OUT_SHARE), _HOLD_OUT_MOST)
        train, val, origin = sorted(indices[size:]), indices[:size], "part of the trainset"
    return Data(trainset, (), _names("train", train), _names("train", val), origin)


def _names(kind: str, indices: Iterable[int]) -> tuple[str, ...]:
    return tuple(f"{kind}:{index}" for index in indices)
