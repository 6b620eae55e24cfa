from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_dlpo import TextualLearningRate
from tests.scripted import Oracle, examples

FOLDER = Path(__file__).parents[1] / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module
    for name in [name for name in sys.modules if name[:2].isdigit()]:
        del sys.modules[name]


def test_policy_of_ones_own_takes_under_forty_lines_and_freezes_what_has_stood(
    lm: dspy.LM, make: Any, example: Any
) -> None:
    policy = example("02_your_own_policy").TextualFreezing
    assert len(inspect.getsource(policy).splitlines()) < 40
    optimizer = make(policies=[TextualLearningRate(1), policy(age=1)], num_steps=6)
    result = optimizer.compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results
    frozen = [len(request.frozen) for record in result.history for request in record.requests]
    assert frozen[0] == 0
    assert frozen == sorted(frozen)
    assert frozen[-1] >= 2
    assert result.best_candidate["self"].startswith("Answer the question.\n")
