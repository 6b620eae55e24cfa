"""A task to try the optimiser on: orders in free text, to be written in a notation that no model can guess.

A shop for cycling clothes gets orders as free text. The warehouse wants each as one line in a notation of its own. A
reviewer marks each line from 0 to 1 and notes what is wrong; from these notes alone the optimiser has to find out the
notation. The shop and the orders are made up.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from io import StringIO
from pathlib import Path

import dspy
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from dspy_dlpo.core.settings import Tuning
from dspy_dlpo.core.visible import visible
from dspy_dlpo.local.weights import MODELS, is_fetched
from dspy_dlpo.optimizer.teleprompter import DLPOOptimizer
from dspy_dlpo.runtime.prices import dollars
from dspy_dlpo.views.result import DLPOResult

MODEL = "qwen2.5-coder-1.5b"
NUM_THREADS = 16
"""Runs in flight on the model of this machine, which answers them together."""

NOTES = {
    "qty": "The quantity is written as qty= and the number in digits.",
    "item": "The article is written as item= and its name in the singular.",
    "size": "The size is written as size= and one of the letters S, M or L.",
    "col": "The colour is written as col= and its name.",
}
"""What the reviewer says of each part that is wrong."""

FORM = "The line holds four parts with semicolons between them, none at the end, and nothing else."
"""What the reviewer says of a line that has not the form."""


class OrderLine(dspy.Signature):  # type: ignore[misc]  # DSPy is untyped.
    """Write the order line for the warehouse."""

    message: str = dspy.InputField()
    line: str = dspy.OutputField()


def review(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> dspy.Prediction:
    """Give a fifth for each right part and one for the form; say what is wrong."""
    expected, line = example.line.split("; "), prediction.line
    notes = [NOTES[part.partition("=")[0]] for part in expected if not re.search(rf"\b{part}\b", line)]
    if line.count(";") != 3 or line.count("=") != 4:
        notes.append(FORM)
    return dspy.Prediction(score=1 - len(notes) / 5, feedback=" ".join(notes))


def load_orders() -> tuple[list[dspy.Example], list[dspy.Example], list[dspy.Example]]:
    """Return train, validation and test examples: 102, 12 and 30."""
    lines = files("dspy_dlpo.local").joinpath("orders.jsonl").read_text(encoding="utf-8").splitlines()
    orders = [dspy.Example(**json.loads(line)).with_inputs("message") for line in lines]
    random.Random(0).shuffle(orders)
    return orders[:102], orders[102:114], orders[114:]


def quickstart(
    model: str | None = None,
    prompt_model: str | None = None,
    *,
    max_metric_calls: int = 80,
    num_threads: int | None = None,
    seed: int = 0,
    log_dir: str | Path = "runs/quickstart",
    say: Callable[[str], None] = print,
) -> DLPOResult:
    """Say what will happen and how long it takes, get the models ready, and tune the program with them.

    Args:
        model: The program's model, as DSPy names it. Default: one on this machine, which is fetched once.
        prompt_model: Criticises and proposes. Default: the same.
        max_metric_calls: See `DLPOOptimizer`, as for `seed` and `log_dir`.
        num_threads: Program runs in flight at once. Default: 16 on this machine, else 8.
        seed: Of the run.
        log_dir: Folder of the run.
        say: Gets each line.

    Returns:
        The result of the run.
    """
    with _models(model, prompt_model, max_metric_calls, say) as (lm, prompt_lm):
        result = tune(
            lm,
            prompt_lm,
            max_metric_calls=max_metric_calls,
            num_threads=num_threads or (8 if model else NUM_THREADS),
            seed=seed,
            log_dir=log_dir,
            free_because="" if model or prompt_model else "it ran on this machine",
            say=say,
        )
    say(f"\nNext, see what the run did and why: dspy-dlpo report {log_dir} --open")
    return result


@contextmanager
def _models(
    model: str | None, prompt_model: str | None, max_metric_calls: int, say: Callable[[str], None]
) -> Iterator[tuple[dspy.BaseLM, dspy.BaseLM]]:
    """Give the program's model and the one that criticises and proposes, and say what will happen with them."""
    if model is not None:
        say(
            f"Tuning the instruction of a small program on {model}: up to {max_metric_calls} runs, and 60 to test it.\n"
        )
        lm = dspy.LM(model)
        yield lm, dspy.LM(prompt_model) if prompt_model else lm
        return
    say(_plan(max_metric_calls))
    from dspy_dlpo.local.engine import local_lm

    start = time.perf_counter()
    lm = local_lm(MODEL, max_tokens=40, stop=["[[ ## completed"])  # What follows is only DSPy's end mark.
    fetched = time.perf_counter()
    try:
        lm.engine.load()
        loaded = time.perf_counter()
        say(
            f"The model is ready: {fetched - start:.0f} s to fetch and check it, {loaded - fetched:.0f} s to load it.\n"
        )
        yield lm, dspy.LM(prompt_model) if prompt_model else lm.copy(max_tokens=80)
    finally:
        lm.engine.cancel()  # What an interruption left in flight.


def tune(
    lm: dspy.BaseLM,
    prompt_model: dspy.BaseLM,
    *,
    max_metric_calls: int = 100,
    num_threads: int = 8,
    seed: int = 0,
    log_dir: str | Path | None = None,
    free_because: str = "",
    say: Callable[[str], None] = print,
) -> DLPOResult:
    """Tune a one-step program for the task, test it before and after, and say what came of it.

    Args:
        lm: The program's model.
        prompt_model: Criticises and proposes.
        max_metric_calls: See `DLPOOptimizer`, as for the others.
        num_threads: Program runs in flight at once.
        seed: Of the run.
        log_dir: Folder of the run.
        free_because: Why the calls cost nothing, if they do not.
        say: Gets each line.

    Returns:
        The result of the run.
    """
    start = time.perf_counter()
    trainset, valset, testset = load_orders()
    program = dspy.Predict(OrderLine)
    optimizer = DLPOOptimizer(
        metric=review,
        prompt_model=prompt_model,
        max_metric_calls=max_metric_calls,
        tuning=Tuning(batch_size=5, max_trial_examples=10, show_gold=False),  # The reviewer's notes are all there is.
        num_threads=num_threads,
        seed=seed,
        log_dir=log_dir,
    )
    with dspy.context(lm=lm):
        optimized = optimizer.compile(program, trainset=trainset, valset=valset)
        result: DLPOResult = optimized.detailed_results
        with tqdm(total=2 * len(testset), desc="testing before and after", unit="run") as bar:

            def counted(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> dspy.Prediction:
                bar.update()
                return review(example, prediction)

            found = result.evaluate(program, testset, metric=counted, num_threads=num_threads)
    say("\n" + _side_by_side(program.signature.instructions, optimized.signature.instructions))
    say(f"Test score of {len(testset)} orders: {100 * found.before:.1f} before, {100 * found.after:.1f} after")
    gain = found.gain
    say(f"Gain: {100 * gain.mean:+.1f} points (95 % interval {100 * gain.low:+.1f} to {100 * gain.high:+.1f})")
    spent = result.spent
    cost = f"nothing, {free_because}" if free_because else dollars(spent.cost)
    say(
        f"Cost of optimising: {cost}; {spent.metric_calls} metric calls, {spent.lm_calls} LM calls, "
        f"{spent.input_tokens} input and {spent.output_tokens} output tokens"
    )
    say(f"Time, test runs included: {(time.perf_counter() - start) / 60:.1f} minutes")
    return result


def _plan(max_metric_calls: int) -> str:
    size = MODELS[MODEL].num_bytes / 1e9
    there = is_fetched(MODEL)
    fetch = f"is on this machine already ({size:.1f} GB)" if there else f"is fetched first ({size:.1f} GB, once)"
    return (
        f"Tuning the instruction of a small program on {MODEL}, which runs on this machine's CPU, without an account.\n"
        f"1. The model {fetch} and loaded: up to a minute.\n"
        f"2. Up to {max_metric_calls} runs of the program on orders, between them the critic and the proposer: some "
        "minutes on two cores.\n"
        "3. The program before and after, each on 30 orders that took no part.\n"
        "Ctrl-C ends it early; the same command goes on.\n"
    )


def _side_by_side(before: str, after: str) -> str:
    """Return both instructions as two columns, as wide as the terminal."""
    table = Table("instruction before", "instruction after", box=None, padding=(0, 3, 0, 0), expand=True)
    table.columns[1].ratio, table.columns[0].ratio = 2, 1
    table.add_row(Text(visible(before)), Text(visible(after)))
    console = Console(file=(text := StringIO()), width=min(shutil.get_terminal_size().columns, 120))
    console.print(table)
    return text.getvalue()
