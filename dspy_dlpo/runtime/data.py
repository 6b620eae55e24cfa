"""The examples of a run, by name, checked and split."""

from __future__ import annotations

import difflib
import logging
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from dspy_dlpo.runtime.digest import digest

_HOLD_OUT_FROM = 20
_HOLD_OUT_SHARE = 0.4
_HOLD_OUT_MOST = 50
_MAKE = "Make examples of rows: [dspy.Example(**row).with_inputs('question') for row in rows]."
_logger = logging.getLogger(__name__)


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


def as_examples(name: str, given: Any) -> list[dspy.Example]:
    """Return what a user gave as a list of examples; `name` is what the user calls it.

    Raises:
        TypeError: If it is no ordered collection of examples.
        ValueError: If there are none, or one has no inputs.
    """
    if callable(getattr(given, "to_dict", None)) and hasattr(given, "columns"):
        rows = f"{name}.to_dict('records')"
        raise TypeError(
            f"`{name}` must be a list of dspy.Example, but got a {type(given).__name__}. "
            f"{_MAKE.replace('in rows', f'in {rows}')}"
        )
    if isinstance(given, (set, frozenset)):
        raise TypeError(
            f"`{name}` must have an order, but got a {type(given).__name__}: no run on it could be repeated. Give a "
            "list, made by sorted(...) with a key."
        )
    if isinstance(given, (str, bytes, Mapping, dspy.Example)) or not isinstance(given, Iterable):
        raise TypeError(f"`{name}` must be a list of dspy.Example, but got {_short(given)}.")
    examples = list(given)
    if not examples:
        raise ValueError(f"`{name}` must hold at least one example, but it is empty.")
    for index, example in enumerate(examples):
        if not isinstance(example, dspy.Example):
            way_out = f" {_MAKE}" if isinstance(example, Mapping) else ""
            raise TypeError(f"{name}[{index}] must be a dspy.Example, but got {_short(example)}.{way_out}")
        if not getattr(example, "_input_keys", None):
            raise ValueError(f"{name}[{index}] has no inputs. Name them with example.with_inputs('question', ...).")
    _check_inputs(name, examples)
    return examples


def _check_inputs(name: str, examples: Sequence[dspy.Example]) -> None:
    """Refuse an input that no example has: it is misspelt. One that some have may be left out by others."""
    fields = {field for example in examples for field, _ in example.items()}
    for index, example in enumerate(examples):
        for wanted in example._input_keys:
            if wanted not in fields:
                near = difflib.get_close_matches(wanted, fields, 1)
                raise ValueError(
                    f"{name}[{index}] must have the inputs it names, but with_inputs({wanted!r}) names a field that no "
                    f"example has. The fields are {', '.join(sorted(map(str, fields)))}."
                    + (f" Did you mean {near[0]!r}?" if near else "")
                )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def prepare(trainset: Iterable[dspy.Example], valset: Iterable[dspy.Example] | None, seed: int) -> Data:
    """Check the examples, and hold out a valset if none is given and the trainset is large enough.

    A warning names examples that are twice in a set, or in both: the valset must be new to the candidates.

    Raises:
        TypeError: If something is not a `dspy.Example`, or a set of them has no order.
        ValueError: If the trainset is empty or an example has no inputs.
    """
    trainset = as_examples("trainset", trainset)
    if valset is not None and not (isinstance(valset, Collection) and len(valset) == 0):
        valset = as_examples("valset", valset)
        _warn_of_copies(trainset, valset)
        order = list(range(len(valset)))
        random.Random(f"{seed}/valset").shuffle(order)  # A comparison that stops early needs them in random order.
        return Data(trainset, valset, _names("train", range(len(trainset))), _names("val", order), "given")
    _warn_of_copies(trainset, ())
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


def _warn_of_copies(trainset: Sequence[dspy.Example], valset: Sequence[dspy.Example]) -> None:
    train, val = ([digest(dict(example.inputs())) for example in examples] for examples in (trainset, valset))
    for name, inputs in (("trainset", train), ("valset", val)):
        if copies := len(inputs) - len(set(inputs)):
            _logger.warning(
                "%d of the %d examples of the %s have the inputs of another one there: they count twice, and intervals "
                "look narrower than they are. Leave them out.",
                copies,
                len(inputs),
                name,
            )
    known = set(train)
    if shared := sum(each in known for each in val):
        _logger.warning(
            "%d of the %d validation examples have the inputs of a train example: candidates are made from them, so "
            "the score and the gain on the valset look better than they are. Give a `valset` without them, or none.",
            shared,
            len(val),
        )


def _names(kind: str, indices: Iterable[int]) -> tuple[str, ...]:
    return tuple(f"{kind}:{index}" for index in indices)
