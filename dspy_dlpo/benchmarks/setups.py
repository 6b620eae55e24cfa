"""The tasks of a comparison by name, for the command line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import dspy
from dspy.lm15 import Request, Response

from dspy_dlpo.benchmarks.compare import Setting, Setup
from dspy_dlpo.benchmarks.simulation.simulator import DIFFICULTIES, simulation
from dspy_dlpo.benchmarks.tasks.registry import check_name, load_task
from dspy_dlpo.local.engine import LocalEngine
from dspy_dlpo.local.weights import weights_path

_LOCAL = "qwen2.5-coder-1.5b"
_ANSWER_TOKENS, _PROMPT_TOKENS = 32, 300
"""Most tokens of a reply of the model on this machine: as the program, and as critic and proposer."""


def setup_named(
    name: str,
    model: str | None,
    prompt_model: str | None,
    data_dir: Path | None,
    sizes: tuple[int, int, int] | None = None,
    latency: float = 0.0,
    num_workers: int = 1,
) -> Setup:
    """Return the setup of a task.

    Args:
        name: `simulated/DIFFICULTY`, which has models of its own, or a name that `load_task` knows.
        model: The program's model, as DSPy names it; `local` is the one of `dspy_dlpo.local`, which suits tasks with
            short answers.
        prompt_model: Criticises and proposes. Default: `model`.
        data_dir: See `load_task`.
        sizes: Train, validation and test examples. Default: the task's own.
        latency: Seconds that a simulated model takes to answer.
        num_workers: Processes that run cells side by side; those with the local model share the cores evenly.

    Raises:
        ValueError: If there is no such task, or one that is not simulated has no model.
    """
    kind, _, difficulty = name.partition("/")
    if kind == "simulated":
        if difficulty not in DIFFICULTIES:
            raise ValueError(f"A simulated task must be simulated/ and one of {', '.join(DIFFICULTIES)}, not {name!r}.")
        return partial(_simulated, difficulty, latency)
    check_name(name)
    if model is None:
        raise ValueError(f"`model` must be given for {name}: only simulated tasks have a model of their own.")
    return partial(_public, name, model, prompt_model, data_dir, sizes, max(1, (os.cpu_count() or 1) // num_workers))


def settings_of(
    name: str, model: str | None, prompt_model: str | None, data_dir: Path | None, sizes: Sequence[int] | None
) -> dict[str, Any]:
    """Return what the results of a task depend on, as JSON; the arguments are those of `setup_named`."""
    if name.startswith("simulated/"):
        return {}
    data = "the hub" if data_dir is None else "a folder"
    return {"model": model, "prompt_model": prompt_model or model, "data": data, "sizes": [*sizes] if sizes else None}


def _simulated(difficulty: str, latency: float, seed: int) -> Setting:
    found = simulation(difficulty, seed, latency=latency)
    return Setting(found.task, found.lm, found.prompt_lm, found.program_accuracy)


def _public(
    name: str,
    model: str,
    prompt_model: str | None,
    data_dir: Path | None,
    sizes: tuple[int, int, int] | None,
    cores: int,
    seed: int,
) -> Setting:
    task = load_task(name, data_dir=data_dir, seed=seed, sizes=sizes)
    return Setting(task, _lm(model, _ANSWER_TOKENS, cores), _lm(prompt_model or model, _PROMPT_TOKENS, cores))


def _lm(model: str, max_tokens: int, cores: int) -> dspy.LM:
    return _local(max_tokens, cores) if model == "local" else dspy.LM(model)


def _local(max_tokens: int, cores: int) -> dspy.LM:
    """Return the model on this machine, with a limit of its own on an answer."""
    return dspy.LM(
        f"local/{_LOCAL}",
        engine=_engine(cores),
        temperature=0.0,
        max_tokens=max_tokens,
        num_retries=0,
        stop=["[[ ## completed"],  # What follows is only DSPy's end mark.
    )


@lru_cache
def _engine(cores: int) -> _Once:
    """Return the engine that all cells share, in both roles: its weights are big."""
    return _Once(weights_path(_LOCAL), cores)


class _Once(LocalEngine):
    """Computes the answer to a prompt at temperature 0 once: every optimiser scores the same student, say.

    It stands below what counts calls and tokens, so only the seconds of a cell depend on what ran before it.
    """

    def __init__(self, path: Path, num_threads: int) -> None:
        super().__init__(path, num_threads=num_threads)
        self._answers: dict[str, Response] = {}

    def complete(self, request: Request) -> Response:
        if request.config.temperature:
            return super().complete(request)
        key = repr(request)
        if key not in self._answers:
            self._answers.setdefault(key, super().complete(request))  # Another thread may have been faster.
        return self._answers[key]
