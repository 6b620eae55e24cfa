"""Who comes from another optimiser is told the name that an argument has here."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_dlpo import DLPOOptimizer
from tests.scripted import Oracle, examples, metric, scripted_lm

OTHERS = {
    "GEPA": dspy.GEPA,
    "MIPROv2": dspy.MIPROv2,
    "COPRO": dspy.COPRO,
    "SIMBA": dspy.SIMBA,
    "BootstrapFewShot": dspy.BootstrapFewShotWithRandomSearch,
}


def names_of(function: Any, *but: str) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name not in (*but, "self") and name[0] != "_"]


@pytest.mark.parametrize("kind", OTHERS.values(), ids=OTHERS)
def test_every_argument_of_another_optimiser_works_or_is_answered_with_what_to_do(kind: Any) -> None:
    own = names_of(DLPOOptimizer)
    for name in names_of(kind.__init__, *own):
        with pytest.raises(TypeError, match=rf"no argument `{name}`\. `{name}`: \w+") as told:
            DLPOOptimizer(metric, **{name: 1})
        assert "the arguments are" not in str(told.value)
    for name in names_of(kind.compile, "student", "trainset", "teacher", "valset"):
        with pytest.raises(TypeError, match=rf"`compile` has no argument `{name}`") as told:
            DLPOOptimizer(metric).compile(dspy.Predict(Oracle), examples(40), **{name: 1})
        assert "the arguments are" not in str(told.value)


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("reflection_lm", "use `prompt_model`"),
        ("task_model", "set the LM of the program itself"),
        ("max_bootstrapped_demos", "use `max_demos`"),
        ("breadth", r"Tuning\(num_candidates=...\)"),
        ("batch_size", r"use tuning=Tuning\(batch_size=...\)"),
        ("max_metric_cals", "did you mean `max_metric_calls`"),
        ("batchsize", r"did you mean use tuning=Tuning\(batch_size|use tuning=Tuning\(batch_size"),
        ("use_wandb", "WandbListener"),
        ("zzz", "the arguments are metric, score_range"),
    ],
)
def test_argument_that_there_is_not_is_answered(name: str, answer: str) -> None:
    with pytest.raises(TypeError, match=answer):
        DLPOOptimizer(metric=metric, **{name: 1})


def test_metric_and_trainset_may_be_given_by_position_and_nothing_else(make: Any) -> None:
    optimizer = DLPOOptimizer(metric, num_steps=1, verbose=False, num_threads=2)
    with dspy.context(lm=scripted_lm()):
        assert len(optimizer.compile(dspy.Predict(Oracle), examples(40)).detailed_results.history) == 1
    with pytest.raises(TypeError, match="takes `metric` by position and everything else by name"):
        DLPOOptimizer(metric, scripted_lm())


def test_subclass_may_have_arguments_of_its_own() -> None:
    class Mine(DLPOOptimizer):
        def __init__(self, colour: str, **named: Any) -> None:
            super().__init__(metric, **named)
            self.colour = colour

    assert Mine("red", seed=3).seed == 3


LOAD = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "dspy_dlpo":
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
import dspy
program = dspy.load(sys.argv[1], allow_pickle=True)
print(program.signature.instructions)
print([*vars(program)])
"""


def test_program_that_is_saved_whole_loads_with_dspy_alone_and_holds_no_training_example(
    make: Any, tmp_path: Path
) -> None:
    with dspy.context(lm=scripted_lm()):
        optimized = make(num_steps=4).compile(dspy.Predict(Oracle), examples(40))
    result = optimized.detailed_results
    dspy.Predict(Oracle.with_instructions("Other.")).save(str(tmp_path / "student"), save_program=True)
    optimized.save(str(tmp_path / "optimized"), save_program=True)
    size, before = ((tmp_path / name / "program.pkl").stat().st_size for name in ("optimized", "student"))
    assert size < before + 2000
    assert b"What of topic" not in (tmp_path / "optimized" / "program.pkl").read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path / "optimized")],
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert optimized.signature.instructions in done.stdout
    assert optimized.detailed_results is result, "saving changes nothing"
    assert optimized.deepcopy().detailed_results is result
    assert len(optimized.candidate_programs) > 1
