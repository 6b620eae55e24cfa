"""The trace of a rollout: every predictor call, and which output went into which input."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import dspy
from dspy.utils.callback import BaseCallback
from dspy.utils.exceptions import AdapterParseError

from dspy_dlpo.records import Call

_MAX_CALLS = 200

PredictorNames = Mapping[int, str]


def predictor_names(program: dspy.Module) -> PredictorNames:
    """Return the name of each predictor by its identity, and by that of its signature.

    A predictor that was deep-copied on the way (`dspy.Refine`) still has the signature of its original.
    """
    named = program.named_predictors()
    return {id(each): name for name, predictor in named for each in (predictor.signature, predictor)}


@dataclass(eq=False)
class _Record:
    """A call while the program runs, with the values themselves."""

    predictor: dspy.Predict
    inputs: Mapping[str, Any]
    begun: float
    own_thread: bool
    outputs: Mapping[str, Any] = field(default_factory=dict)
    ended: float = float("inf")
    aside: AbstractContextManager[None] = field(default_factory=nullcontext)
    error: BaseException | None = None
    sources: dict[str, list[_Record]] = field(default_factory=dict)
    depth: int = 0


class Recorder(BaseCallback):  # type: ignore[misc]  # DSPy is untyped.
    """Records every predictor call of one rollout, failed ones included.

    DSPy's own trace leaves out calls whose reply could not be parsed, and those made inside `dspy.Parallel`. During a
    predictor call it is not among the callbacks: DSPy would call it for adapter and language model too, at a cost.

    Args:
        names: The `predictor_names` of the program that runs.
        given: The example's inputs.
        max_chars: Characters kept of each field.
    """

    def __init__(self, names: PredictorNames, given: Mapping[str, Any], max_chars: int) -> None:
        self._names = names
        self._given = list(given.values())
        self._max_chars = max_chars
        self._records: dict[str, _Record] = {}
        self._clock = itertools.count()
        self._thread = threading.get_ident()

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Note that a call has begun."""
        if isinstance(instance, dspy.Predict):
            fields = instance.signature.input_fields
            given = {name: value for name, value in inputs.get("kwargs", inputs).items() if name in fields}
            own_thread = threading.get_ident() == self._thread
            aside = dspy.context(callbacks=[each for each in dspy.settings.callbacks if each is not self])
            aside.__enter__()
            self._records[call_id] = _Record(instance, given, next(self._clock), own_thread, aside=aside)

    def on_module_end(self, call_id: str, outputs: Any | None, exception: BaseException | None = None) -> None:
        """Note how it ended."""
        if record := self._records.get(call_id):
            record.aside.__exit__(None, None, None)
            record.outputs = dict(outputs.items()) if outputs is not None else {}
            record.error = exception
            record.ended = next(self._clock)

    def trace(self) -> list[tuple[str | None, tuple[dspy.Predict, Mapping[str, Any], dspy.Prediction]]]:
        """Return the calls that went well, in DSPy's form, each with its predictor's path."""
        return [
            (self._name(each), (each.predictor, each.inputs, dspy.Prediction(**each.outputs)))
            for each in list(self._records.values())
            if each.outputs
        ]

    def calls(self, prediction: Any = None) -> tuple[Call, ...]:
        """Return the calls that have ended, in an order that does not depend on threads.

        That is the order in which they began; calls that `dspy.Parallel` makes at once are ordered by what they build
        on and by their inputs. Of very many calls the first and the last are kept, 200 in all.

        Args:
            prediction: What the program returned.
        """
        ended = [record for record in list(self._records.values()) if record.ended < float("inf")]
        half = _MAX_CALLS // 2
        ended = ended if len(ended) <= _MAX_CALLS else ended[:half] + ended[-half:]
        for record in ended:
            record.sources = self._sources(record, [other for other in ended if other.ended < record.begun])
            makers = itertools.chain.from_iterable(record.sources.values())
            record.depth = 1 + max((maker.depth for maker in makers), default=0)
        texts = {id(record): self._texts(record.inputs) for record in ended}
        own = sorted(record.begun for record in ended if record.own_thread)

        def place(record: _Record) -> tuple[float, int, str, str]:
            if record.own_thread:
                return own.index(record.begun), 0, "", ""
            return sum(begun < record.begun for begun in own) - 0.5, record.depth, *_sort_texts(record)

        def _sort_texts(record: _Record) -> tuple[str, str]:
            return str(self._name(record)), str(texts[id(record)])

        order = sorted(ended, key=place)
        index = {id(record): number for number, record in enumerate(order)}
        results = prediction.values() if isinstance(prediction, dspy.Prediction) else [prediction]
        returned = {id(maker) for result in results for maker in _makers(result, ended)}
        return tuple(
            Call(
                predictor=self._name(record),
                inputs=texts[id(record)],
                outputs=self._texts(record.outputs),
                error=shorten(_call_error(record.error), self._max_chars),
                sources={
                    name: tuple(sorted(index[id(maker)] for maker in makers)) for name, makers in record.sources.items()
                },
                returned=id(record) in returned,
            )
            for record in order
        )

    @property
    def num_calls(self) -> int:
        """How many calls were begun."""
        return len(self._records)

    def _name(self, record: _Record) -> str | None:
        return self._names.get(id(record.predictor), self._names.get(id(record.predictor.signature)))

    def _sources(self, record: _Record, earlier: Sequence[_Record]) -> dict[str, list[_Record]]:
        """Return for each input field the earlier calls that made it.

        DSPy keeps no graph, so the values tell: the same object, else an equal text, else a text that stands in the
        input. If no input was made by a call as far as that tells, an input that the example does not have either was
        made from the outputs of the call before.
        """
        found, unknown = {}, []
        for name, value in record.inputs.items():
            if makers := _makers(value, earlier):
                found[name] = makers
            elif not any(_equals(given, value) or _contains(given, value) for given in self._given):
                unknown.append(name)
        if not found and earlier:
            last = max(earlier, key=lambda other: other.ended)
            found = {name: [last] for name in unknown}
        return found

    def _texts(self, fields: Mapping[str, Any]) -> dict[str, str]:
        return {name: shorten(_text(value), self._max_chars) for name, value in fields.items()}


def _makers(value: Any, earlier: Sequence[_Record]) -> list[_Record]:
    """Return the calls an output of which is the value, else equals it, else stands in it; the surest kind only."""
    if value is None or value == "":
        return []
    for same in (_is, _equals, _contains):
        if makers := [other for other in earlier if any(same(value, output) for output in other.outputs.values())]:
            return makers
    return []


def _is(value: Any, output: Any) -> bool:
    return value is output and not isinstance(value, (bool, int))  # Small numbers are one object wherever they are.


def _equals(value: Any, output: Any) -> bool:
    return _text(value).strip() == _text(output).strip() != ""


def _contains(value: Any, output: Any) -> bool:
    text = _text(output).strip()
    return len(text) > 1 and re.search(rf"(?<!\w){re.escape(text)}(?!\w)", _text(value)) is not None


def _text(value: Any) -> str:
    """Return a value as the critic reads it; DSPy's own types (an image) leave their raw data out of their `repr`."""
    return repr(value) if isinstance(value, dspy.Type) else str(value)


def _call_error(exception: BaseException | None) -> str:
    if exception is None:
        return ""
    if isinstance(exception, AdapterParseError):
        expected = ", ".join(f"`{name}`" for name in exception.signature.output_fields)
        return f"The reply did not hold the fields {expected} in the asked form. It was: {exception.lm_response}"
    return f"{type(exception).__name__}: {exception}"


def shorten(text: str, max_chars: int) -> str:
    """Return a text of at most `max_chars` characters: its beginning and its end, and how much is left out between."""
    if len(text) <= max_chars:
        return text
    mark = f" ... [{len(text) - max_chars} characters left out] ... "
    room = max(max_chars - len(mark), 0)
    return text[: room - room // 2] + mark[:max_chars] + text[len(text) - room // 2 :]
