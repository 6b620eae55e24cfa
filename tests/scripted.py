"""A language model that follows a script, and a small world in which the best instruction is known.

In the world, a question has a topic and each topic has a secret answer. The model knows the secret of a topic only if
the instruction says it. As critic it repeats what the complaint says about the topic; as proposer it adds the criticism
to the instruction. Everything it does depends on its prompt alone.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import dspy
from dspy.lm15 import Request, response_to_events

from dspy_dlpo.benchmarks.simulation.scripted import (
    Script,
    SimulatedEngine,
    add_criticism,
    field,
    fields,
    play,
    role_of,
)
from dspy_dlpo.runtime.waiting import AsyncEngine

SECRETS = {"alpha": "11", "beta": "22", "gamma": "33", "delta": "44", "omega": "55"}


class ScriptedEngine(SimulatedEngine):
    """The engine of the world."""

    def count(self, role: str) -> int:
        return sum(role_of(system) == role for system, _ in self.log)

    def stream(self, request: Request) -> Iterator[Any]:
        yield from response_to_events(self.complete(request))

    def dump_state(self) -> dict[str, Any]:
        return {}

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> ScriptedEngine:
        return cls(world())


class ScriptedAsyncEngine(AsyncEngine):
    """The same for asynchronous calls."""

    def dump_state(self) -> dict[str, Any]:
        return {}

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> ScriptedAsyncEngine:
        return cls(ScriptedEngine(world()))


def scripted_lm(script: Script | None = None, model: str = "scripted/model", **settings: Any) -> dspy.LM:
    settings = {"cache": False, "num_retries": 0, **settings}
    engine = ScriptedEngine(script or world())
    return dspy.LM(model, engine=engine, async_engine=ScriptedAsyncEngine(engine), **settings)


def world(critic: Script | None = None, proposer: Script | None = None, program: Script | None = None) -> Script:
    """Return the script of the world, with some roles played otherwise."""

    return play(program or _program, critic or _critic, proposer or add_criticism)


def replying(**values: str | Callable[[str], str]) -> Script:
    """Return a script that fills each field it is asked for, in the form of whichever adapter asks.

    A field has the value of its name, or that of a function of the user's message. By default the critic says
    "nothing", the proposer proposes nothing, and any other field holds its own name.
    """
    known = {
        "new_instruction": "NOTHING",
        "requirements": "NOTHING",
        "input_complaint": "NOTHING",
        "edits": "NOTHING",
        **values,
    }

    def answer(system: str, user: str) -> str:
        asked = system.partition("Your output fields are:")[2].partition("All interactions")[0]
        values = {name: known.get(name, name) for name in re.findall(r"^\d+\. `(\w+)`", asked, re.MULTILINE)}
        found = {name: value if isinstance(value, str) else value(user) for name, value in values.items()}
        if "Outputs will be a JSON object" in system:
            return json.dumps(found)
        return fields(**found) if "[[ ## " in system else "".join(f"<{name}>{found[name]}</{name}>" for name in found)

    return answer


class Program(dspy.Module):
    """A program of the given predictors; `run` is its `forward`."""

    def __init__(self, run: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part if isinstance(part, dspy.Module) else dspy.Predict(part))

    def forward(self, **inputs: Any) -> Any:
        return self.run(self, **inputs)


def _program(system: str, user: str) -> str:
    topic = re.search(r"topic (\w+)", user)
    secret = topic and re.search(rf"When the topic is {topic.group(1)}, answer (\d+)", system)
    return fields(answer=secret.group(1) if secret else "unknown")


def _critic(system: str, user: str) -> str:
    said = re.findall(r"When the topic is \w+, answer \d+\.", field(user, "complaint"))
    extra = {"input_complaint": "NOTHING"} if "input_complaint" in system else {}
    return fields(requirements="\n".join(f"- {each}" for each in said) or "NOTHING", **extra)


class Oracle(dspy.Signature):
    """Answer the question."""

    question: str = dspy.InputField()
    answer: str = dspy.OutputField()


def examples(number: int, start: int = 0) -> list[dspy.Example]:
    topics = list(SECRETS)
    return [
        dspy.Example(
            question=f"{index}: What of topic {topics[index % 5]}?", answer=SECRETS[topics[index % 5]]
        ).with_inputs("question")
        for index in range(start, start + number)
    ]


def metric(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> dspy.Prediction:
    topic = str(example.question).split("topic ")[1].rstrip("?")
    right = prediction.answer == example.answer
    feedback = "" if right else f"When the topic is {topic}, answer {example.answer}."
    return dspy.Prediction(score=float(right), feedback=feedback)


class CountingMetric:
    """The metric of the world, counting its calls."""

    def __init__(self) -> None:
        self.calls = 0
        self._lock = threading.Lock()

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> dspy.Prediction:
        with self._lock:
            self.calls += 1
        return metric(example, prediction)
