from __future__ import annotations

import logging
from typing import Any

import dspy
import pytest

from dspy_dlpo import Listener
from tests.scripted import Oracle, examples, scripted_lm


class Diary(Listener):
    """Writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.said: dict[str, Any] = {}

    def on_run_start(self, run: Any, budget: Any) -> None:
        self.heard.append("start")
        self.said |= {"run": run, "budget": budget}

    def on_candidate(self, candidate: Any, step: int) -> None:
        self.heard.append(f"candidate {candidate.id}")

    def on_step_end(self, record: Any) -> None:
        self.heard.append(f"step {record.step}")

    def on_run_end(self, result: Any, program: Any) -> None:
        self.heard.append("end")
        self.said |= {"result": result, "program": program}

    def on_run_error(self, error: BaseException) -> None:
        self.heard.append(type(error).__name__)


class Broken(Listener):
    def __getattribute__(self, name: str) -> Any:
        if name.startswith("on_"):
            raise ArithmeticError(name)
        return super().__getattribute__(name)


def test_listener_hears_everything_in_order_and_each_candidate_once(lm: dspy.LM, make: Any) -> None:
    diary = Diary()
    program = make(listeners=[diary]).compile(dspy.Predict(Oracle), trainset=examples(40))
    history = program.detailed_results.history
    seen: set[str] = {program.detailed_results.candidates[0].id}
    expected = ["start"]
    for record in history:
        expected += [f"candidate {each.id}" for each in record.candidates if each.id not in seen]
        seen |= {each.id for each in record.candidates}
        expected.append(f"step {record.step}")
    assert diary.heard == [*expected, "end"]
    assert diary.said["program"] is program
    assert diary.said["result"] is program.detailed_results
    assert diary.said["budget"].spent == program.detailed_results.spent
    assert diary.said["run"].num_train + diary.said["run"].num_val == 40


class Phases(Listener):
    """Writes down what the run does in each step."""

    def __init__(self) -> None:
        self.steps: list[list[str]] = [[]]

    def on_phase(self, phase: str) -> None:
        self.steps[-1].append(phase)

    def on_step_end(self, record: Any) -> None:
        self.steps.append([])


def test_listener_hears_what_the_run_does(lm: dspy.LM, make: Any) -> None:
    phases = Phases()
    make(num_steps=2, listeners=[phases]).compile(dspy.Predict(Oracle), trainset=examples(40))
    step = ["running the minibatch", "asking the critic", "looking for candidates", "trying the candidates"]
    assert phases.steps == [["scoring the student", *step], step, ["making the final choice"]]


def test_listener_that_raises_is_reported_and_changes_nothing(
    lm: dspy.LM, make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    diary = Diary()
    with caplog.at_level(logging.ERROR):
        program = make(listeners=[Broken(), diary]).compile(dspy.Predict(Oracle), trainset=examples(40))
    assert "Broken raised in on_run_start; the run goes on." in caplog.messages
    assert diary.heard[-1] == "end"
    plain = make().compile(dspy.Predict(Oracle), trainset=examples(40))
    assert program.detailed_results.best_candidate == plain.detailed_results.best_candidate


def test_listener_hears_of_an_exception(make: Any) -> None:
    diary = Diary()

    def broken(system: str, user: str) -> str:
        raise KeyboardInterrupt

    with dspy.context(lm=scripted_lm(broken)), pytest.raises(KeyboardInterrupt):
        make(listeners=[diary]).compile(dspy.Predict(Oracle), trainset=examples(40))
    assert diary.heard == ["start", "KeyboardInterrupt"]


def test_what_is_no_listener_is_refused(make: Any) -> None:
    with pytest.raises(TypeError, match=r"`listeners` must be a list of dspy_dlpo\.Listener"):
        make(listeners=[print])
    with pytest.raises(TypeError, match=r"`listeners` must be a list of dspy_dlpo\.Listener"):
        make(listeners=print)
