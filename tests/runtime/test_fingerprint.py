"""What a resumed run must share with the one it resumes: data, settings and models; of code a change is only told."""

from __future__ import annotations

import functools
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_dlpo.policies import Policy, TextualLearningRate, schedules
from dspy_dlpo.runtime.data import prepare
from dspy_dlpo.runtime.fingerprint import fingerprint, policy_text, source
from tests.scripted import Oracle, examples, metric, scripted_lm

LOG: list[Any] = []
CALLS = 0


class Logging:
    """A metric that collects whatever an object can collect."""

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.cache: dict[str, Any] = {}
        self.calls = 0
        self.began = time.time()
        self.logger = logging.getLogger("mine")
        self.lock = threading.Lock()

    def __call__(self, example: dspy.Example, prediction: Any, trace: object = None) -> Any:
        with self.lock:
            self.calls += 1
            self.log.append(prediction.answer)
            return self.cache.setdefault(f"{example.question}{prediction.answer}", metric(example, prediction))


class Collecting(dspy.Module):
    """A program that does."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = dspy.Predict(Oracle)
        self.seen: list[str] = []
        self.count, self.began = 0, time.time()

    def forward(self, question: str) -> Any:
        self.seen.append(question)
        self.count += 1
        return self.answer(question=question)


class Noisy(Policy):
    """A policy with settings of all kinds."""

    def __init__(self, api_key: str = "sk-policy-secret-0123456789", rate: Any = 0.5) -> None:
        self.api_key, self.rate = api_key, rate
        self.client = {"password": "hunter22", "retries": 3}
        self.lock = threading.Lock()


def global_log(example: dspy.Example, prediction: Any, trace: object = None) -> Any:
    global CALLS
    CALLS += 1
    LOG.append(prediction)
    return metric(example, prediction)


def with_closure() -> Callable[..., Any]:
    calls = 0
    log: list[Any] = []

    def score(example: dspy.Example, prediction: Any, trace: object = None) -> Any:
        nonlocal calls
        calls += 1
        log.append(calls)
        return metric(example, prediction)

    return score


@pytest.mark.parametrize(
    "collecting",
    [Logging(), Logging().__call__, global_log, with_closure(), functools.partial(global_log), functools.cache(metric)],
    ids=["object", "method", "global", "closure", "partial", "cache"],
)
def test_run_with_a_metric_and_a_program_that_collect_resumes_without_a_word(
    make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, collecting: Any
) -> None:
    program = Collecting()
    for num_steps in (1, 2):
        with dspy.context(lm=(lm := scripted_lm())):
            optimizer = make(metric=collecting, num_steps=num_steps, log_dir=tmp_path)
            optimizer.compile(program, trainset=examples(40), valset=examples(5, 100))
            program(question="1: What of topic beta?")
    assert lm.engine.count("critic") <= 8, "the first step was paid for"
    assert "changed" not in caplog.text


PROGRAM = """
import sys, time, logging, dspy
from dspy_dlpo import DLPOOptimizer
from tests.scripted import Oracle, examples, metric, scripted_lm
class Metric:
    def __init__(self):
        self.log, self.began, self.logger, self.path = [], time.time(), logging.getLogger("x"), sys.argv[2]
    def __call__(self, example, prediction, trace=None):
        self.log.append(prediction)
        return metric(example, prediction)
class Program(dspy.Module):
    def __init__(self):
        super().__init__()
        self.answer, self.began, self.names = dspy.Predict(Oracle), time.time(), {"a", "b", sys.argv[2]}
    def forward(self, question):
        self.began += 1
        return self.answer(question=question)
lm = scripted_lm()
with dspy.context(lm=lm):
    optimizer = DLPOOptimizer(metric=Metric(), num_steps=1, log_dir=sys.argv[1], verbose=False)
    optimizer.compile(Program(), trainset=examples(40), valset=examples(5, 100))
print(len(lm.engine.log))
"""


def test_run_of_a_script_resumes_in_another_process(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PROGRAM)
    asked = []
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, str(tmp_path / "mine.py"), str(tmp_path / "run"), f"cache{seed}"],
            env={"PYTHONHASHSEED": seed, "PATH": "", "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            check=True,
        )
        asked.append(int(done.stdout))
        assert "changed" not in done.stderr
    assert asked[0] > 0
    assert asked[1] == 0


def define(code: str, name: str, folder: Path) -> Any:
    """Return what a module defines, with a source file of its own."""
    path = folder / f"{name}_{abs(hash(code))}.py"
    path.write_text(code)
    known: dict[str, Any] = {"__name__": "mine"}
    exec(compile(code, str(path), "exec"), known)
    return known[name]


METRIC = """
from tests.scripted import metric
def score(example, prediction, trace=None):
    return metric(example, prediction)
"""
MODULE = """
import dspy
from tests.scripted import Oracle
class Mine(dspy.Module):
    def __init__(self):
        super().__init__()
        self.answer = dspy.Predict(Oracle)
    def forward(self, question):
        return self.answer(question=question)
"""


def test_change_of_code_is_a_warning_that_names_it_and_the_run_goes_on(
    make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    score, Mine = define(METRIC, "score", tmp_path), define(MODULE, "Mine", tmp_path)
    with dspy.context(lm=scripted_lm()):
        make(metric=score, num_steps=1, log_dir=tmp_path / "run").compile(Mine(), trainset=examples(40))
    score = define(METRIC.replace("return", "print('called'); return"), "score", tmp_path)
    Mine = define(MODULE.replace("return self", "print('called'); return self"), "Mine", tmp_path)
    optimizer = make(metric=score, num_steps=1, log_dir=tmp_path / "run")
    with dspy.context(lm=(lm := scripted_lm())):
        optimizer.compile(Mine(), trainset=examples(40))
        assert len(lm.engine.log) == 0
        assert "this changed: code of Mine, code of metric" in caplog.text
        caplog.clear()
        optimizer.compile(Mine(), trainset=examples(40))
    assert "changed" not in caplog.text, "it is told once"


@pytest.mark.parametrize(
    ("arguments", "compile_with", "said"),
    [
        ({"seed": 1}, {}, "seed: 0 then, 1 now"),
        ({}, {"trainset": [*examples(39), *examples(1, 41)]}, "data"),
        ({"policies": [TextualLearningRate(3)]}, {}, r"policies: .*max_edits=2\) then, .*max_edits=3\) now"),
        ({"prompt_model": scripted_lm(temperature=0.5)}, {}, "settings of the models"),
        ({"show_gold": False}, {}, "show_gold: True then, False now"),
    ],
    ids=["seed", "data", "policies", "model", "setting"],
)
def test_change_of_what_decides_a_run_is_refused(
    make: Any, tmp_path: Path, arguments: dict[str, Any], compile_with: dict[str, Any], said: str
) -> None:
    usual = {"policies": [TextualLearningRate(2)], "num_steps": 1, "log_dir": tmp_path}
    with dspy.context(lm=scripted_lm()):
        make(**usual).compile(dspy.Predict(Oracle), trainset=examples(40))
        with pytest.raises(ValueError, match=f"other settings: {said}"):
            make(**{**usual, **arguments}).compile(dspy.Predict(Oracle), **{"trainset": examples(40), **compile_with})


def test_other_instruction_or_demos_of_the_student_are_refused(make: Any, tmp_path: Path) -> None:
    other = dspy.Predict(Oracle)
    other.demos = [dspy.Example(question="?", answer="!")]
    with dspy.context(lm=scripted_lm()):
        make(num_steps=1, log_dir=tmp_path).compile(dspy.Predict(Oracle), trainset=examples(40))
        with pytest.raises(ValueError, match="other settings: program"):
            make(num_steps=1, log_dir=tmp_path).compile(other, trainset=examples(40))


def test_image_exchanged_for_one_of_equal_length_is_other_data(make: Any, tmp_path: Path) -> None:
    def shown(letter: str) -> list[dspy.Example]:
        image = dspy.Image(url=f"data:image/png;base64,{'A' * 40}{letter}{'A' * 40}")
        return [each.copy(picture=image) for each in examples(40)]

    with dspy.context(lm=scripted_lm()):
        make(num_steps=1, log_dir=tmp_path).compile(dspy.Predict(Oracle), trainset=shown("A"))
        with pytest.raises(ValueError, match="other settings: data"):
            make(num_steps=1, log_dir=tmp_path).compile(dspy.Predict(Oracle), trainset=shown("B"))


def test_another_key_or_address_of_the_model_is_the_same_run_and_another_temperature_is_not() -> None:
    def found(**settings: Any) -> dict[str, str]:
        program = dspy.Predict(Oracle)
        program.lm = dspy.LM("openai/gpt-x", **settings)
        return fingerprint(program, {}, [], [], prepare(examples(3), None, 0), settings={}, seed=0)

    headers = {"Authorization": "Bearer one"}
    assert found(api_key="sk-one", api_base="http://me:pw@host", extra_headers=headers) == found(api_key="sk-two")
    assert found(temperature=0.5) != found()


def test_policy_shows_its_numbers_and_schedules_and_no_text_of_its_own() -> None:
    assert (
        policy_text(TextualLearningRate(schedules.linear(4, 1, 3))) == "TextualLearningRate(max_edits=linear(1, 3, 4))"
    )
    said = policy_text(Noisy())
    assert "rate=0.5" in said
    assert "retries=3" in said
    assert "secret" not in said
    assert "hunter22" not in said
    assert policy_text(Noisy()) == said, "no address in memory is in it"
    assert policy_text(Noisy("sk-other")) != said
    assert policy_text(Noisy(rate=schedules.warm_up(schedules.constant(2), 3))) != said


def test_source_of_an_object_is_that_of_its_class_and_its_bases_but_not_of_dspy() -> None:
    (text,) = source(Collecting())
    assert "self.seen.append(question)" in text
    assert source(dspy.Predict(Oracle)) == []
    assert source(functools.partial(metric)) == source(metric) != source(global_log)
