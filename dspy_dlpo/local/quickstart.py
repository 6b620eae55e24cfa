"""A task to try the optimiser on: orders in free text, to be written in a notation that no model can guess.

A shop for cycling clothes gets orders as free text. The warehouse wants each as one line in a notation of its own. A
reviewer marks each line from 0 to 1 and notes what is wrong; from these notes alone the optimiser has to find out the
notation. The shop and the orders are made up.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from statistics import fmean

import dspy

from dspy_dlpo.descent.statistics import Gain
from dspy_dlpo.optimizer.teleprompter import DLPOOptimizer

NOTES = {
    "qty": "The quantity is written as qty= and the number in digits.",
    "item": "The article is written as item= and its name in the singular.",
    "size": "The size is written as size= and one of the letters S, M or L.",
    "col": "The colour is written as col= and its name.",
}
"""What the reviewer says of each part that is wrong."""


class OrderLine(dspy.Signature):  # type: ignore[misc]  # DSPy is untyped.
    """Write the order line for the warehouse."""

    message: str = dspy.InputField()
    line: str = dspy.OutputField()


def review(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> dspy.Prediction:
    """Give a fifth for each right part and one for the form; say what is wrong."""
    expected, line = example.line.split("; "), prediction.line
    notes = [NOTES[part.partition("=")[0]] for part in expected if not re.search(rf"\b{part}\b", line)]
    if line.count(";") != 3 or line.count("=") != 4:
        notes.append("The line holds four parts, separated by semicolons, and nothing else.")
    return dspy.Prediction(score=1 - len(notes) / 5, feedback=" ".join(notes))


def load_orders() -> tuple[list[dspy.Example], list[dspy.Example], list[dspy.Example]]:
    """Return train, validation and test examples: 94, 20 and 30."""
    lines = files("dspy_dlpo.local").joinpath("orders.jsonl").read_text(encoding="utf-8").splitlines()
    orders = [dspy.Example(**json.loads(line)).with_inputs("message") for line in lines]
    random.Random(0).shuffle(orders)
    return orders[:94], orders[94:114], orders[114:]


def run(
    lm: dspy.BaseLM,
    prompt_model: dspy.BaseLM,
    *,
    max_metric_calls: int = 100,
    num_threads: int = 1,
    seed: int = 0,
    log_dir: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Tune a one-step program for the task, test it before and after, and say what came of it.

    Args:
        lm: The program's model.
        prompt_model: Criticises and proposes.
        max_metric_calls: See `DLPOOptimizer`, as for the others.
        num_threads: Program runs in flight at once.
        seed: Of the run.
        log_dir: Folder of the run.
        say: Gets each line.
    """
    start = time.perf_counter()
    trainset, valset, testset = load_orders()
    program = dspy.Predict(OrderLine)
    evaluate = dspy.Evaluate(devset=testset, metric=review, num_threads=num_threads)
    optimizer = DLPOOptimizer(
        metric=review,
        prompt_model=prompt_model,
        max_metric_calls=max_metric_calls,
        batch_size=5,
        max_trial_examples=10,
        show_gold=False,  # The reviewer's notes are all there is.
        num_threads=num_threads,
        seed=seed,
        log_dir=log_dir,
    )
    with dspy.context(lm=lm):
        say(f"Scoring the program on {len(testset)} test orders ...")
        before = [float(score) for _, _, score in evaluate(program).results]
        optimized = optimizer.compile(program, trainset=trainset, valset=valset)
        say(f"Scoring the optimised program on the {len(testset)} test orders ...")
        after = [float(score) for _, _, score in evaluate(optimized).results]
    gain, spent = Gain.between(before, after, score_range=(0.0, 1.0)), optimized.detailed_results.spent
    say(f"\nInstruction before:\n{program.signature.instructions}")
    say(f"\nInstruction after:\n{optimized.signature.instructions}")
    say(f"\nTest score before: {100 * fmean(before):.1f}")
    say(f"Test score after:  {100 * fmean(after):.1f}")
    say(f"Gain: {100 * gain.mean:+.1f} points (95 % interval {100 * gain.low:+.1f} to {100 * gain.high:+.1f})")
    say(
        f"Optimising took {spent.metric_calls} metric calls, {spent.lm_calls} LM calls, {spent.input_tokens} input and "
        f"{spent.output_tokens} output tokens."
    )
    say(f"Time, test runs included: {(time.perf_counter() - start) / 60:.1f} minutes.")
