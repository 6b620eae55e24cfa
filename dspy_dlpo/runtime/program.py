"""The user's program: everything that a run asks of it, and its copies with the parameters of a candidate."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from types import MethodType
from typing import Any

import dspy

from dspy_dlpo.core.records import Candidate, Demo
from dspy_dlpo.runtime.copies import Copier
from dspy_dlpo.runtime.trace import PredictorNames, predictor_names
from dspy_dlpo.runtime.waiting import finish

_MAX_CANDIDATES = 8  # Whose copies are kept.
_ROLLOUT_IDS = 1000  # A repeat's own: modules such as `dspy.Refine` count on from the one they are given.
_PLAIN = (dspy.Module, *dspy.Module.__mro__)
_REACT = "You are an Agent."


@dataclass(frozen=True)
class Copy:
    """A copy of the student with the parameters of a candidate, ready to run.

    Attributes:
        program: The program.
        lm: DSPy's default LM for it.
        names: The names of its predictors.
        originals: The names of the student's predictors, by identity.
    """

    program: dspy.Module
    lm: dspy.BaseLM | None
    names: PredictorNames
    originals: PredictorNames

    def __call__(self, **inputs: Any) -> Any:
        """Run the program; one that has only `aforward` is awaited."""
        return call(self.program, **inputs)

    @cached_property
    def instructions(self) -> dict[str, str]:
        """The instruction of each predictor, in one line."""
        return {name: in_one_line(each.signature.instructions) for name, each in self.program.named_predictors()}

    @cached_property
    def _frozen(self) -> set[int]:
        modules = [each for _, each in self.program.named_sub_modules(dspy.Module) if each is not self.program]
        frozen = [each for module in modules if module._compiled for _, each in module.named_sub_modules(dspy.Predict)]
        return {id(thing) for each in frozen for thing in (each, each.signature)}

    def stranger(self, predictor: dspy.Predict) -> str:
        """Return what to call a predictor that ran and has no name; empty if it is frozen or a part of DSPy."""
        if id(predictor) in self.originals:
            return f"{self.originals[id(predictor)]} (reached by a closure or a global: the original, not the copy)"
        signature = predictor.signature
        is_of_dspy = signature.__module__.startswith("dspy.") and signature.__module__ != dspy.Signature.__module__
        if is_of_dspy or self._frozen & {id(predictor), id(signature)}:
            return ""
        return f"{', '.join(signature.input_fields)} -> {', '.join(signature.output_fields)}"


class Student:
    """The user's program. It is copied for each candidate and never changed.

    Args:
        program: The program.

    Raises:
        TypeError: If it is no program.
    """

    def __init__(self, program: dspy.Module) -> None:
        if not isinstance(program, dspy.Module):
            raise TypeError(f"`student` must be a dspy.Module, but got {program!r}.")
        self._program = program
        self._copies: OrderedDict[str, dict[tuple[int, dspy.BaseLM | None], Copy]] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Student, (self._program,)

    @property
    def original(self) -> dspy.Module:
        """The program itself."""
        return self._program

    @property
    def name(self) -> str:
        """Name of the program's class."""
        return type(self._program).__name__

    @cached_property
    def _copier(self) -> Copier:
        return Copier(self._program)

    @cached_property
    def predictors(self) -> dict[str, dspy.Predict]:
        """The predictors that may be optimised, by path."""
        return {
            name: predictor
            for name, predictor in self._program.named_predictors()
            if predictor is self._program or not getattr(predictor, "_compiled", False)
        }

    @cached_property
    def start(self) -> Candidate:
        """The parameters it has."""
        return Candidate({name: predictor.signature.instructions for name, predictor in self.predictors.items()})

    @property
    def all_predictors(self) -> list[dspy.Predict]:
        """All predictors, frozen ones included."""
        return [predictor for _, predictor in self._program.named_sub_modules(dspy.Predict)]

    @property
    def models(self) -> list[dspy.BaseLM]:
        """The language model of each predictor, frozen ones included."""
        models = [predictor.lm or dspy.settings.lm for predictor in self.all_predictors]
        return [model for model in models if model is not None]

    @property
    def model(self) -> dspy.BaseLM | None:
        """DSPy's default language model, else that of the first predictor."""
        return dspy.settings.lm or next(iter(self.predictors.values())).lm

    @property
    def is_repeatable(self) -> bool:
        """Whether it gives the same answer every time, since every model has temperature 0."""
        return all(model.kwargs.get("temperature") == 0 for model in self.models)

    def check(self, num_repeats: int = 1) -> None:
        """Refuse a program that cannot be optimised.

        Args:
            num_repeats: Runs of a candidate on each example.

        Raises:
            ValueError: If there is no predictor to optimise, or one that cannot be copied or has no language model; or
                if there are repeats though every model has temperature 0.
        """
        if not self.predictors:
            raise ValueError(f"No predictor to optimise in {self.name}. Sub-modules marked `_compiled` are skipped.")
        models = {name: predictor.lm or dspy.settings.lm for name, predictor in self.predictors.items()}
        if without := [name for name, model in models.items() if not model]:
            raise ValueError(
                f"No language model for predictor {', '.join(without)}. "
                "Call dspy.configure(lm=dspy.LM(...)) first, or set one on the program with set_lm."
            )
        copies = dict(self._copier().named_predictors())
        if same := [name for name, predictor in self.predictors.items() if copies.get(name, predictor) is predictor]:
            raise ValueError(
                f"Predictor {', '.join(same)} is not in the copies of {self.name}, or cannot be copied, so that it "
                "cannot be tuned without changing the program itself. Let its `__deepcopy__` or `deepcopy` return a "
                "true copy."
            )
        if num_repeats > 1 and all(model.kwargs.get("temperature") == 0 for model in models.values()):
            raise ValueError(
                f"`num_repeats` must be 1 at temperature 0, but got num_repeats={num_repeats}: every repeat would be "
                "the same. Give the program's LM a temperature above 0, or leave `num_repeats` out."
            )

    def state(self) -> dict[str, Any]:
        """Return the state of its predictors, without language models."""
        return state_of(self._program)

    def read_back(self, name: str, instruction: str) -> str:
        """Return an instruction as the predictor's signature gives it back: DSPy cleans its indentation."""
        return self.predictors[name].signature.with_instructions(instruction).instructions  # type: ignore[no-any-return]  # DSPy is untyped.

    def protocols(self) -> dict[str, list[str]]:
        """Return, by predictor, the parts of its instruction that a module of DSPy wrote around its signature's."""
        names = {id(predictor): name for name, predictor in self._program.named_predictors()}
        found: dict[str, list[str]] = {}
        for _, module in self._program.named_sub_modules(dspy.Module):
            task = getattr(getattr(module, "signature", None), "instructions", None)
            of_dspy = any(kind.__module__.startswith("dspy.") for kind in type(module).__mro__ if kind not in _PLAIN)
            if isinstance(module, dspy.Predict) or not of_dspy or not task:
                continue
            for predictor in vars(module).values():
                if isinstance(predictor, dspy.Predict) and id(predictor) in names:
                    text = predictor.signature.instructions
                    if isinstance(module, dspy.ReAct) and predictor is module.react:
                        parts = [text[text.find(_REACT) :]]  # Also where an optimiser has changed the task before it.
                    else:
                        parts = [part.strip() for part in text.partition(task)[::2]]
                    found.setdefault(names[id(predictor)], []).extend(part for part in parts if part)
        return found

    def program(self, candidate: Candidate) -> dspy.Module:
        """Return a new copy with the parameters of a candidate; what the candidate does not have stays as it is."""
        program = self._copier()
        for name, predictor in program.named_predictors():
            if name in candidate.instructions:
                predictor.signature = predictor.signature.with_instructions(candidate.instructions[name])
            if demos := candidate.demos.get(name):
                predictor.demos = [*predictor.demos, *(as_example(demo, predictor.signature) for demo in demos)]
        return program

    def copy(self, candidate: Candidate, repeat: int = 0) -> Copy:
        """Return the copy on which a candidate is run; the same one again if it was made lately.

        DSPy's cache answers each repeat anew, the first as usual: from the second on, the language models have a
        `rollout_id` of their own.
        """
        key = repeat, dspy.settings.lm
        with self._lock:
            copies = self._copies.setdefault(candidate.id, {})
            self._copies.move_to_end(candidate.id)
            if len(self._copies) > _MAX_CANDIDATES:
                self._copies.popitem(last=False)
            if key not in copies:
                copies[key] = self._copy(candidate, *key)
            return copies[key]

    def _copy(self, candidate: Candidate, repeat: int, lm: dspy.BaseLM | None) -> Copy:
        program = self.program(candidate)
        for _, predictor in program.named_sub_modules(dspy.Predict):
            if repeat:
                predictor.lm = _uncached(predictor.lm, repeat)
            for name, method in (("forward", _forward), ("aforward", _aforward)):
                if name not in vars(predictor):
                    setattr(predictor, name, MethodType(method, predictor))
        originals = {id(each): name for name, each in self._program.named_predictors()}
        return Copy(program, _uncached(lm, repeat) if repeat else lm, predictor_names(program), originals)


def as_example(demo: Demo, signature: type[dspy.Signature]) -> dspy.Example:
    """Return a demo as DSPy keeps it on a predictor."""
    inputs = [name for name in demo.fields if name in signature.input_fields]
    return dspy.Example(**demo.fields, augmented=demo.augmented).with_inputs(*inputs)


def state_of(program: dspy.Module) -> dict[str, Any]:
    """Return the state of a program without its language models: they may have keys, or no state to be saved."""
    program = Copier(program)()
    for _, predictor in program.named_sub_modules(dspy.Predict):
        predictor.lm = None
    return program.dump_state()  # type: ignore[no-any-return]  # DSPy is untyped.


def in_one_line(text: str) -> str:
    """Return a text with single spaces for all white space: adapters indent instructions."""
    return " ".join(text.split())


def with_instructions(program: dspy.Module, candidate: Candidate) -> dspy.Module:
    """Return a copy of a program that has the candidate's parameters."""
    return Student(program).program(candidate)


def call(module: dspy.Module, *args: Any, **inputs: Any) -> Any:
    """Call a module, in the way it can be called: by its `forward`, else by its `aforward`."""
    if hasattr(type(module), "forward") or "forward" in vars(module) or not hasattr(type(module), "aforward"):
        return module(*args, **inputs)
    return finish(module.acall(*args, **inputs))


def _forward(predictor: dspy.Predict, **inputs: Any) -> Any:
    """Run a predictor; one whose `forward` the program calls is called as DSPy asks, so that the call is traced."""
    if _is_called(predictor):
        return type(predictor).forward(predictor, **inputs)
    return predictor(**inputs)


async def _aforward(predictor: dspy.Predict, **inputs: Any) -> Any:
    """Do the same for `aforward`."""
    if _is_called(predictor):
        return await type(predictor).aforward(predictor, **inputs)
    return await predictor.acall(**inputs)


def _is_called(predictor: dspy.Predict) -> bool:
    return (dspy.settings.caller_modules or [None])[-1] is predictor


def _uncached(lm: dspy.BaseLM | None, repeat: int) -> dspy.BaseLM | None:
    """Return a copy of the LM whose requests DSPy's cache does not answer with those of another repeat."""
    if lm is None or lm.kwargs.get("temperature") == 0:
        return lm
    return lm.copy(rollout_id=repeat * _ROLLOUT_IDS)
