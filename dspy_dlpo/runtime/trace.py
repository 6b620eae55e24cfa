"""The trace of a rollout: every predictor call, and which output went into which input."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import threading
import time
from bisect import bisect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import dspy
import pydantic
from dspy.adapters.utils import serialize_for_json
from dspy.utils.callback import ACTIVE_CALL_ID, BaseCallback
from dspy.utils.exceptions import AdapterParseError

from dspy_dlpo.core.plain import well_formed
from dspy_dlpo.core.records import Call
from dspy_dlpo.runtime.inherit import since

_MAX_CALLS = 200
_MAX_PARTS = 300
_LONG = 20


class _Value:
    """A value and its parts as they are now: the program may change a list later. Of many parts the last are kept."""

    def __init__(self, thing: Any, max_parts: int = _MAX_PARTS) -> None:
        self.thing = thing
        self.text = as_text(thing)
        # As a prompt shows it: in words, an enum's member or a model would not be what a reply must hold.
        self.shown = in_prompt(thing) if max_parts == _MAX_PARTS else self.text
        parts = [*_parts(thing)][-max_parts:] if max_parts else []
        self.parts = [_Value(part, (max_parts - 1) // len(parts)) for part in parts]

    @property
    def own_keys(self) -> tuple[int, str]:
        """What tells whether another value is the same object, and whether it has an equal text.

        No identity is 0: small numbers and single characters are one object wherever they are.
        """
        shared = isinstance(self.thing, (bool, int)) or (isinstance(self.thing, str) and len(self.thing) < 2)
        return 0 if shared or self.thing is None else id(self.thing), self.text.strip()

    def all_keys(self) -> Iterator[int | str]:
        """Yield the keys of the value and of its parts, empty ones left out."""
        yield from filter(None, self.own_keys)
        for part in self.parts:
            yield from part.all_keys()


PredictorNames = Mapping[int, str]


def predictor_names(program: dspy.Module) -> PredictorNames:
    """Return the name of each predictor by its identity, and by that of its signature.

    A predictor that was deep-copied on the way (`dspy.Refine`) still has the signature of its original.
    """
    named = program.named_predictors()
    return {id(each): name for name, predictor in named for each in (predictor.signature, predictor)}


@dataclass(eq=False)
class _Record:
    """A call while the program runs, with the values themselves.

    A task is what runs in one thread and one asyncio task: the program itself, or one item of a `dspy.Parallel`.
    """

    predictor: dspy.Predict
    inputs: Mapping[str, _Value]
    begun: int
    task: str
    prediction: Any = None
    outputs: Mapping[str, _Value] = field(default_factory=dict)
    ended: float = float("inf")
    ended_at: int = 0  # By `time.monotonic_ns`.
    done: threading.Event = field(default_factory=threading.Event)
    aside: AbstractContextManager[None] = field(default_factory=nullcontext)
    error: BaseException | None = None
    sources: dict[str, list[_Record]] = field(default_factory=dict)
    depth: int = 0


_Makers = dict[int | str, list[_Record]]


class Recorder(BaseCallback):  # type: ignore[misc]  # DSPy is untyped.
    """Records every predictor call of one rollout, failed ones included, until the program returns.

    DSPy's own trace leaves out calls whose reply could not be parsed, and those made inside `dspy.Parallel`. During a
    predictor call it is not among the callbacks: DSPy would call it for adapter and language model too, at a cost.

    Args:
        program: The program that runs.
        names: Its `predictor_names`.
        given: The example's inputs.
        max_chars: Characters kept of each field.
    """

    def __init__(self, program: dspy.Module, names: PredictorNames, given: Mapping[str, Any], max_chars: int) -> None:
        self._names = names
        self._given = {key for value in given.values() for key in _Value(value).all_keys()}
        self._max_chars = max_chars
        self._program = program
        self._root = ""  # The program's own call, which is also the name of its task.
        self._returned = False
        self._records: dict[str, _Record] = {}
        self._modules: dict[str, tuple[tuple[int, int], str]] = {}  # Where each module call runs, and its task.
        self._begun_by: dict[str, str] = {}  # For each task the one that began it.
        self._since: dict[str, int] = {}  # When each task was started.
        self._clock = itertools.count()

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Note that a call has begun."""
        if self._returned:  # The metric asks a predictor of its own.
            return
        if instance is self._program:
            self._root = self._root or call_id
        here = _here()
        caller = self._modules.get(ACTIVE_CALL_ID.get() or "")
        task = caller[1] if caller and caller[0] == here else call_id
        if caller and caller[1] != task:
            self._begun_by[task] = caller[1]
        self._modules[call_id] = here, task
        self._since.setdefault(task, since())
        if isinstance(instance, dspy.Predict):
            fields = instance.signature.input_fields
            given = inputs.get("kwargs", inputs)
            values = {name: _Value(value) for name, value in given.items() if name in fields}
            aside = dspy.context(callbacks=[each for each in dspy.settings.callbacks if each is not self])
            aside.__enter__()
            self._records[call_id] = _Record(instance, values, next(self._clock), task, aside=aside)

    def on_module_end(self, call_id: str, outputs: Any | None, exception: BaseException | None = None) -> None:
        """Note how it ended."""
        self._returned |= call_id == self._root
        if record := self._records.get(call_id):
            record.aside.__exit__(None, None, None)
            record.prediction = outputs
            record.error = exception
            try:
                record.outputs = {name: _Value(value) for name, value in outputs.items()} if outputs is not None else {}
            finally:
                record.ended, record.ended_at = next(self._clock), time.monotonic_ns()
                record.done.set()

    def wait(self, seconds: float) -> None:
        """Wait for calls that have begun and not ended: those that a cancelled `dspy.Parallel` has left behind."""
        end = time.monotonic() + seconds
        for record in list(self._records.values()):
            record.done.wait(max(end - time.monotonic(), 0))

    def trace(self) -> list[tuple[str | None, tuple[dspy.Predict, Mapping[str, Any], dspy.Prediction]]]:
        """Return the calls that went well, in DSPy's form, each with its predictor's path."""
        return [
            (
                self._name(each),
                (each.predictor, {name: value.thing for name, value in each.inputs.items()}, each.prediction),
            )
            for each in self._in_order(list(self._records.values()))
            if each.outputs
        ]

    def calls(self, prediction: Any = None) -> tuple[Call, ...]:
        """Return the calls that have ended, in an order that does not depend on threads.

        That is the order in which they began; what `dspy.Parallel` runs at once is ordered by what it builds on and by
        its inputs. Of very many calls the first and the last are kept, 200 in all.

        Args:
            prediction: What the program returned.
        """
        ended = self._in_order([record for record in list(self._records.values()) if record.ended < float("inf")])
        if len(ended) > _MAX_CALLS:
            ended = ended[: _MAX_CALLS // 2] + ended[-_MAX_CALLS // 2 :]
        for record in sorted(ended, key=lambda record: record.begun):
            earlier = [other for other in ended if other.outputs and self._is_before(other, record)]
            record.sources = self._sources(record, earlier)
            makers = itertools.chain.from_iterable(record.sources.values())
            record.depth = 1 + max((maker.depth for maker in makers), default=0)
        ended = self._in_order(ended)
        index = {id(record): number for number, record in enumerate(ended)}
        returned = {id(maker) for maker in self._makers(_Value(prediction), _outputs(ended)) or ()}
        return tuple(
            Call(
                predictor=self._name(record),
                inputs=self._texts(record.inputs),
                outputs=self._texts(record.outputs),
                error=shorten(_call_error(record.error), self._max_chars),
                sources={
                    name: tuple(sorted(index[id(maker)] for maker in makers)) for name, makers in record.sources.items()
                },
                returned=id(record) in returned,
            )
            for record in ended
        )

    @property
    def errors(self) -> list[BaseException]:
        """What the calls raised, also where the program went on, as `dspy.Parallel` does."""
        return [record.error for record in list(self._records.values()) if record.error is not None]

    @property
    def num_calls(self) -> int:
        """How many calls were begun."""
        return len(self._records)

    def unnamed(self) -> list[dspy.Predict]:
        """Return the predictors that were called and have no name."""
        return [record.predictor for record in list(self._records.values()) if self._name(record) is None]

    def _name(self, record: _Record) -> str | None:
        return self._names.get(id(record.predictor), self._names.get(id(record.predictor.signature)))

    def _in_order(self, records: Sequence[_Record]) -> list[_Record]:
        """Sort by what the program's own task began before, then the other tasks by depth and inputs."""
        tasks: dict[str, list[_Record]] = {}
        for record in sorted(records, key=lambda record: record.begun):
            tasks.setdefault(record.task, []).append(record)
        own = tasks.pop(self._root, [])
        places: dict[int, tuple[Any, ...]] = {id(record): (number,) for number, record in enumerate(own)}
        begun = [record.begun for record in own]
        for task in tasks.values():
            texts = [[str(self._name(each)), *(value.text for value in each.inputs.values())] for each in task]
            behind = bisect(begun, task[0].begun) - 0.5
            places |= {id(each): (behind, task[0].depth, texts, number) for number, each in enumerate(task)}
        return sorted(records, key=lambda record: places[id(record)])

    def _is_before(self, other: _Record, record: _Record) -> bool:
        """Whether a call had ended when another began; one that ran beside its task counts as later, whenever it was.

        Which of two items of a `dspy.Parallel` is done first depends on the threads, and neither can use the other.
        """
        if record.task in self._with_ancestors(other.task) or other.task in self._with_ancestors(record.task):
            return other.ended < record.begun
        return other.ended < record.begun and other.ended_at <= self._since[record.task]

    def _with_ancestors(self, task: str) -> list[str]:
        """Return a task, the one that began it, and so on."""
        found = [task]
        while (above := self._begun_by.get(found[-1])) and above not in found:
            found.append(above)
        return found

    def _sources(self, record: _Record, earlier: Sequence[_Record]) -> dict[str, list[_Record]]:
        """Return for each input field the earlier calls that made it.

        DSPy keeps no graph, so the values tell: the same object, else an equal text, else a text that stands in the
        input. If no input was made by a call as far as that tells, an input that the example does not have either was
        made from the outputs of the call before.
        """
        outputs = _outputs(earlier)
        found, unknown = {}, []
        for name, value in record.inputs.items():
            makers = self._makers(value, outputs)
            if makers:
                found[name] = [maker for maker in makers if maker.task == record.task] or makers
            elif makers is None and value.thing is not None:
                unknown.append(name)
        if not found and (before := self._before(record, earlier)):
            found = dict.fromkeys(unknown, before)
        return found

    def _makers(self, value: _Value, outputs: _Makers) -> list[_Record] | None:
        """Return the calls that made a value, none if the example gave it, None if nothing tells."""
        identity, text = value.own_keys
        if identity in outputs:
            return outputs[identity]
        if identity in self._given or text in self._given:
            return []
        if text in outputs:
            return outputs[text]
        if found := [makers for part in value.parts if (makers := self._makers(part, outputs)) is not None]:
            return list(dict.fromkeys(itertools.chain(*found)))
        return self._makers_within(text, outputs)

    def _makers_within(self, text: str, outputs: _Makers) -> list[_Record] | None:
        """Look for outputs and given texts inside a text, the longest first; what is found is cut out."""
        keys = {key for key in (*outputs, *self._given) if isinstance(key, str) and len(key) > 1 and key in text}
        makers: list[_Record] | None = None
        for key in sorted(keys, key=lambda key: (-len(key), key)):
            rest = _without(text, key)
            if rest != text:
                text, makers = rest, [*(makers or ()), *(() if key in self._given else outputs[key])]
        return makers and list(dict.fromkeys(makers))

    def _before(self, record: _Record, earlier: Sequence[_Record]) -> list[_Record]:
        """Return the call before in the same task, or what `dspy.Parallel` has run since; else that before the task."""
        last: dict[str, _Record] = {other.task: other for other in sorted(earlier, key=lambda other: other.ended)}
        task: str | None = record.task
        since = last[task].ended if task in last else -1
        if run := [last[each] for each in last if self._begun_by.get(each) == task and last[each].begun > since]:
            return run
        while task and task not in last:
            task = self._begun_by.get(task)
        return [last[task]] if task else []

    def _texts(self, values: Mapping[str, _Value]) -> dict[str, str]:
        return {name: shorten(value.shown, self._max_chars) for name, value in values.items()}


def _here() -> tuple[int, int]:
    """Return what tells this thread and asyncio task from others."""
    try:
        return threading.get_ident(), id(asyncio.current_task())
    except RuntimeError:  # No event loop runs.
        return threading.get_ident(), 0


def _outputs(records: Iterable[_Record]) -> _Makers:
    """Return the calls by the identities and the texts of what they gave."""
    made: _Makers = {}
    for record in records:
        for key in dict.fromkeys(key for value in record.outputs.values() for key in value.all_keys()):
            made.setdefault(key, []).append(record)
    return made


def _parts(thing: Any) -> Iterable[Any]:
    if isinstance(thing, (Mapping, dspy.Example)):
        return thing.values()
    if isinstance(thing, pydantic.BaseModel):
        return vars(thing).values()
    return thing if isinstance(thing, (list, tuple, set, frozenset)) else ()


def _without(text: str, part: str) -> str:
    """Return a text without a part of it; a short part must not be inside a word."""
    if len(part) >= _LONG:
        return text.replace(part, "\n")
    return re.sub(rf"(?<!\w){re.escape(part)}(?!\w)", "\n", text)


def as_text(value: Any) -> str:
    """Return a value as the critic reads it; DSPy's own types (an image) leave their raw data out of their `repr`."""
    return well_formed(repr(value) if isinstance(value, dspy.Type) else str(value))


def in_prompt(value: Any) -> str:
    """Return a value as DSPy's adapters show it in a prompt, without the raw data of DSPy's own types (an image)."""
    if isinstance(value, str) or _holds_raw_data(value):
        return as_text(value)
    plain = serialize_for_json(value)
    return json.dumps(plain, ensure_ascii=False) if isinstance(plain, (dict, list)) else as_text(plain)


def _holds_raw_data(value: Any, depth: int = 8) -> bool:
    """Whether one of DSPy's own types is in a value; the depth is bounded, for a list may hold itself."""
    return isinstance(value, dspy.Type) or (depth > 0 and any(_holds_raw_data(p, depth - 1) for p in _parts(value)))


def _call_error(exception: BaseException | None) -> str:
    if exception is None:
        return ""
    if isinstance(exception, AdapterParseError):
        expected = ", ".join(f"`{name}`" for name in exception.signature.output_fields)
        return well_formed(
            f"The reply did not hold the fields {expected} in the asked form. It was: {exception.lm_response}"
        )
    return f"{type(exception).__name__}: {exception}"


def shorten(text: str, max_chars: int) -> str:
    """Return a text of at most `max_chars` characters: its beginning and its end, and how much is left out between."""
    if len(text) <= max_chars:
        return text
    mark = f" ... [{len(text) - max_chars} characters left out] ... "
    room = max(max_chars - len(mark), 0)
    return text[: room - room // 2] + mark[:max_chars] + text[len(text) - room // 2 :]
