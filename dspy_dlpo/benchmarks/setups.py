"""The tasks of a comparison by name, for the command line."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import dspy

from dspy_dlpo.benchmarks.compare import Setting, Setup
from dspy_dlpo.benchmarks.simulator import DIFFICULTIES, simulation
from dspy_dlpo.benchmarks.tasks import load_task


def setup_named(name: str, model: str | None, prompt_model: str | None, data_dir: Path | None) -> Setup:
    """Return the setup of a task.

    Args:
        name: `simulated/DIFFICULTY`, which has models of its own, or a name that `load_task` knows.
        model: The program's model, as DSPy names it.
        prompt_model: Criticises and proposes. Default: `model`.
        data_dir: See `load_task`.

    Raises:
        ValueError: If a task that is not simulated has no model, or there is no such difficulty.
    """
    kind, _, difficulty = name.partition("/")
    if kind == "simulated":
        if difficulty not in DIFFICULTIES:
            raise ValueError(f"A simulated task must be simulated/ and one of {', '.join(DIFFICULTIES)}, not {name!r}.")
        return partial(_simulated, difficulty)
    if model is None:
        raise ValueError(f"`model` must be given for {name}: only simulated tasks have a model of their own.")
    return partial(_public, name, model, prompt_model, data_dir)


def _simulated(difficulty: str, seed: int) -> Setting:
    found = simulation(difficulty, seed)
    return Setting(found.task, found.lm, found.prompt_lm, found.program_accuracy)


def _public(name: str, model: str, prompt_model: str | None, data_dir: Path | None, seed: int) -> Setting:
    return Setting(
        load_task(name, data_dir=data_dir, seed=seed), dspy.LM(model), dspy.LM(prompt_model) if prompt_model else None
    )
