from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("DSPY_CACHEDIR", tempfile.mkdtemp(prefix="dspy-dlpo-tests-"))
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # litellm would look for prices on the network first.

import dspy
import pytest
from hypothesis import settings

from dspy_dlpo import DLPOOptimizer, Tuning
from dspy_dlpo.runtime.budget import Limits
from tests.scripted import metric, scripted_lm

settings.register_profile("default", max_examples=200, deadline=None)
settings.register_profile("thorough", max_examples=2000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture
def lm() -> Iterator[dspy.LM]:
    """The scripted model of the world, as DSPy's default."""
    model = scripted_lm()
    with dspy.context(lm=model):
        yield model


@pytest.fixture
def make() -> Any:
    """An optimiser for the world, with short runs unless told otherwise; it sorts out what belongs to `Tuning`."""

    def optimizer(**arguments: Any) -> DLPOOptimizer:
        given = {"auto", "num_steps", "patience", *Limits.__dataclass_fields__} & arguments.keys()
        limits = {} if given else {"num_steps": 4}
        tuning = Tuning(**{name: arguments.pop(name) for name in Tuning.__dataclass_fields__ if name in arguments})
        defaults = {"metric": metric, "verbose": False, "num_threads": 2, "tuning": tuning}
        return DLPOOptimizer(**{**defaults, **limits, **arguments})

    return optimizer
