"""The user's program: everything that a run asks of it, and its copies with the parameters of a candidate."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import dspy

from dspy_dlpo.core.records import Candidate
from dspy_dlpo.runtime.trace import PredictorNames, predictor_names

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
    """

    program: dspy.Module
    lm: dspy.BaseLM | None
    names: PredictorNames


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

    @property
    def name(self) -> str:
        """Name of the program's class."""
        return type(self._program).__name__

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
            ValueError: If there is no predictor to optimise, or one without a language model; or if there are repeats
                though every model has temperature 0.
        """
        if not self.predictors:
            raise ValueError(f"No predictor to optimise in {self.name}. Sub-modules marked `_compiled` are skipped.")
        models = {name: predictor.lm or dspy.settings.lm for name, predictor in self.predictors.items()}
        if without := [name for name, model in models.items() if not model]:
            raise ValueError(
                f"No language model for predictor {', '.join(without)}. "
                "Call dspy.configure(lm=dspy.LM(...)) first, or set one on the program with set_lm."
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
        program = self._program.deepcopy()
        for name, predictor in program.named_predictors():
            if name in candidate.instructions:
                predictor.signature = predictor.signature.with_instructions(candidate.instructions[name])
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
        if repeat:
            for _, predictor in program.named_sub_modules(dspy.Predict):
                predictor.lm = _uncached(predictor.lm, repeat)
            lm = _uncached(lm, repeat)
        return Copy(program, lm, predictor_names(program))


def state_of(program: dspy.Module) -> dict[str, Any]:
    """Return the state of a program without its language models: they may have keys, or no state to be saved."""
    program = program.deepcopy()
    for _, predictor in program.named_sub_modules(dspy.Predict):
        predictor.lm = None
    return program.dump_state()  # type: ignore[no-any-return]  # DSPy is untyped.


def with_instructions(program: dspy.Module, candidate: Candidate) -> dspy.Module:
    """Return a copy of a program that has the candidate's parameters."""
    return Student(program).program(candidate)


def _uncached(lm: dspy.BaseLM | None, repeat: int) -> dspy.BaseLM | None:
    """Return a copy of the LM whose requests DSPy's cache does not answer with those of another repeat."""
    if lm is None or lm.kwargs.get("temperature") == 0:
        return lm
    return lm.copy(rollout_id=repeat * _ROLLOUT_IDS)
