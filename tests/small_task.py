"""A task small enough for unit tests: questions about codes, each right if the instruction says what its code means."""

from __future__ import annotations

import json
import re

import dspy

from dspy_dlpo.benchmarks.compare import Setting
from dspy_dlpo.benchmarks.simulation.scripted import fields, simulated_lm
from dspy_dlpo.benchmarks.tasks.task import Task

INSTRUCTION = "Say what the code means."
CODES = 4


def meaning(code: int) -> str:
    return f"Code K{code} means w{code}."


def script(system: str, user: str) -> str:
    """Answer as the program; as anybody else, write the meanings that the prompt tells."""
    outputs = re.findall(r"^\d+\. `(\w+)`", system.partition("output fields")[2], re.MULTILINE)
    code = re.findall(r"code K(\d+)", user)
    if outputs == ["answer"]:
        return reply(system, {"answer": f"w{code[-1]}" if meaning(int(code[-1])) in system else "unknown"})
    known = " ".join([INSTRUCTION, *dict.fromkeys(re.findall(r"Code K\d+ means w\d+\.", user))])
    if not outputs:  # TextGrad's prompts are plain text.
        return f"<IMPROVED_VARIABLE>{known}</IMPROVED_VARIABLE>"
    if "edits" in outputs:
        return reply(system, {"edits": "\n".join(f'ADD "{each}"' for each in known.split("means. ")[1:])})
    return reply(system, dict.fromkeys(outputs, known))


def reply(system: str, values: dict[str, str]) -> str:
    return json.dumps(values) if "JSON object" in system else fields(**values)


def metric(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> dspy.Prediction:
    right = prediction.answer == example.answer
    feedback = "" if right else meaning(int(example.answer.removeprefix("w")))
    return dspy.Prediction(score=float(right), feedback=feedback)


def examples(number: int, start: int) -> list[dspy.Example]:
    return [
        dspy.Example(
            question=f"{index}: What does code K{index % CODES} mean?", answer=f"w{index % CODES}"
        ).with_inputs("question")
        for index in range(start, start + number)
    ]


def setup(seed: int = 0) -> Setting:
    task = Task(
        name="codes",
        program=dspy.Predict(dspy.Signature("question -> answer", INSTRUCTION)),
        human={"self": " ".join([INSTRUCTION, *map(meaning, range(CODES))])},
        metric=metric,
        trainset=examples(40, 0),
        valset=examples(20, 40),
        testset=examples(8, 60),
    )
    return Setting(task, simulated_lm(script))
