"""TextGrad from its own package, on a DSPy program.

The instructions are its variables, the program's reply a function of them, the metric with its feedback the loss. The
program is run by DSPy, so that all optimisers send the same prompts; the backward pass and the update are TextGrad's,
with its own prompts. As in its scripts for prompt optimisation, a step that lowers the validation score is taken back.
"""

from __future__ import annotations

import logging
import os
import random
import tempfile
from collections.abc import Callable
from typing import Any

import dspy

from dspy_dlpo.benchmarks.extras import extra
from dspy_dlpo.benchmarks.rivals.plans import TEXTGRAD_BATCH
from dspy_dlpo.core.records import Candidate
from dspy_dlpo.runtime.metric import Metric
from dspy_dlpo.runtime.program import with_instructions
from dspy_dlpo.runtime.trace import as_text

_LOSS = "scores the reply with the task's metric and says what is wrong"


def textgrad(
    program: dspy.Module,
    trainset: list[dspy.Example],
    valset: list[dspy.Example],
    *,
    metric: Callable[..., Any],
    prompt_lm: dspy.BaseLM,
    num_steps: int,
    seed: int,
    num_threads: int,
    calls: Callable[[], int],
) -> tuple[dspy.Module, list[tuple[int, dspy.Module]]]:
    """Tune the instructions of a program by TextGrad's textual gradient descent.

    Args:
        program: The program.
        trainset: Examples the steps are drawn from.
        valset: Examples a step is checked on.
        metric: The metric, scores from 0 to 1.
        prompt_lm: Writes gradients and new instructions.
        num_steps: Steps.
        seed: Decides the examples of the steps.
        num_threads: Program runs in flight at once in validation.
        calls: Tells the metric calls made so far.

    Returns:
        The program with the best instructions on the valset; and the metric calls after which each became the best.

    Raises:
        ImportError: If the package is not installed.
    """
    tg = _package()
    scored = Metric(metric, (0.0, 1.0))
    engine = _engine(tg, prompt_lm)
    variables = {
        name: tg.Variable(each.signature.instructions, role_description=f"instruction to the language model ({name})")
        for name, each in program.named_predictors()
    }
    descent = tg.TextualGradientDescent(parameters=list(variables.values()), engine=engine)

    def current() -> dspy.Module:
        return with_instructions(program, Candidate({name: each.value for name, each in variables.items()}))

    validate = dspy.Evaluate(
        devset=valset,
        metric=lambda example, prediction, trace=None: scored(example, prediction, "val:0")[0],
        num_threads=num_threads,
        display_progress=False,
    )
    best, score = current(), validate(program).score
    bests, rng = [(calls(), best)], random.Random(seed)
    for _ in range(num_steps):
        before = {name: each.value for name, each in variables.items()}
        descent.zero_grad()
        losses = [
            _loss(tg, current(), variables, engine, scored, example)
            for example in rng.sample(trainset, min(TEXTGRAD_BATCH, len(trainset)))
        ]
        tg.sum(losses).backward(engine=engine)
        for each in variables.values():  # A set of objects is in another order in every process.
            each.gradients = sorted(each.gradients, key=lambda gradient: str(gradient.value))
        try:
            descent.step()
        except IndexError:
            continue  # TextGrad's own error for a reply without its tags.
        new = validate(current()).score
        if new < score:
            for name, each in variables.items():
                each.set_value(before[name])
        else:
            best, score = current(), new
            bests.append((calls(), best))
    return best, bests


def _loss(
    tg: Any, program: dspy.Module, variables: dict[str, Any], engine: Any, scored: Metric, example: dspy.Example
) -> Any:
    """Run the program on an example; return the loss, connected with the instructions."""
    from textgrad.autograd.function import BackwardContext
    from textgrad.autograd.llm_ops import LLMCall
    from textgrad.autograd.string_based_ops import StringBasedFunction

    prediction = program(**example.inputs())
    score, feedback = scored(example, prediction, "train:0")
    reply = tg.Variable(
        _lines(prediction), predecessors=list(variables.values()), role_description="reply of the language model"
    )
    context = {
        "prompt": _lines(example.inputs()),
        "system_prompt": "\n".join(each.value for each in variables.values()),
    }
    reply.set_grad_fn(BackwardContext(backward_fn=LLMCall(engine).backward, response=reply, **context))
    labels = tg.Variable(_lines(example.labels()), requires_grad=False, role_description="expected reply")
    loss = StringBasedFunction(lambda reply, expected: f"Score {score:g} of 1. {feedback}".strip(), _LOSS)
    return loss(inputs={"reply": reply, "expected": labels})


def _lines(fields: Any) -> str:
    return "\n".join(f"{name}: {as_text(value)}" for name, value in fields.items())


def _package() -> Any:
    os.environ.setdefault("TEXTGRAD_LOG_DIR", tempfile.gettempdir())  # It logs every prompt, by default below here.
    package: Any = extra("textgrad", "textgrad")
    package.logger.setLevel(logging.CRITICAL)
    return package


def _engine(tg: Any, lm: dspy.BaseLM) -> Any:
    """Return a DSPy language model as an engine of TextGrad."""

    class Engine(tg.EngineLM):  # type: ignore[misc]  # TextGrad is untyped.
        model_string = lm.model

        def generate(self, prompt: str, system_prompt: str | None = None, **options: Any) -> str:
            system = [{"role": "system", "content": system_prompt}] if system_prompt else []
            reply = lm(messages=[*system, {"role": "user", "content": prompt}])[0]
            return str(reply["text"] if isinstance(reply, dict) else reply)

        def __call__(self, prompt: str, system_prompt: str | None = None, **options: Any) -> str:
            return self.generate(prompt, system_prompt, **options)

    return Engine()
