"""Tune a one-step program on a language model that runs on this machine: no account, no server.

A shop for cycling clothes gets orders as free text. The warehouse wants each as one line in a notation of its own,
which no model can guess. A reviewer marks each line from 0 to 1 and notes what is wrong; from
these notes alone the optimiser has to find out the notation.

    python examples/01_quickstart.py
    python examples/01_quickstart.py --model openai/gpt-4o-mini --prompt-model openai/gpt-4o
"""

import argparse
import json
import random
import re
import time
from pathlib import Path

import dspy

from dspy_dlpo import DLPOOptimizer, paired_interval

NOTES = {
    "qty": "The quantity is written as qty= and the number in digits.",
    "item": "The article is written as item= and its name in the singular.",
    "size": "The size is written as size= and one of the letters S, M or L.",
    "col": "The colour is written as col= and its name.",
}


class OrderLine(dspy.Signature):
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
    lines = (Path(__file__).parent / "data" / "orders.jsonl").read_text(encoding="utf-8").splitlines()
    orders = [dspy.Example(**json.loads(line)).with_inputs("message") for line in lines]
    random.Random(0).shuffle(orders)
    return orders[:94], orders[94:114], orders[114:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="the program's model, as DSPy names it; default: the one on this machine")
    parser.add_argument("--prompt-model", help="the model that criticises and proposes; default: the same")
    parser.add_argument("--max-metric-calls", type=int, default=100)
    parser.add_argument("--num-threads", type=int, help="default: 1 on this machine, else 8")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    start = time.perf_counter()
    if arguments.model:
        lm = prompt_model = dspy.LM(arguments.model)
    else:
        from dspy_dlpo.local import local_lm

        lm = local_lm(max_tokens=40, stop=["[[ ## completed"])  # What follows is only DSPy's end mark.
        prompt_model = lm.copy(max_tokens=120)
    if arguments.prompt_model:
        prompt_model = dspy.LM(arguments.prompt_model)
    num_threads = arguments.num_threads or (8 if arguments.model else 1)
    dspy.configure(lm=lm)
    trainset, valset, testset = load_orders()
    program = dspy.Predict(OrderLine)
    evaluate = dspy.Evaluate(devset=testset, metric=review, num_threads=num_threads)

    print(f"Scoring the program on {len(testset)} test orders ...", flush=True)
    before = [float(score) for _, _, score in evaluate(program).results]
    optimizer = DLPOOptimizer(
        metric=review,
        prompt_model=prompt_model,
        max_metric_calls=arguments.max_metric_calls,
        batch_size=5,
        max_trial_examples=10,
        show_gold=False,  # The reviewer's notes are all there is.
        num_threads=num_threads,
        seed=arguments.seed,
    )
    optimized = optimizer.compile(program, trainset=trainset, valset=valset)
    print(f"Scoring the optimised program on the {len(testset)} test orders ...", flush=True)
    after = [float(score) for _, _, score in evaluate(optimized).results]

    low, high = paired_interval(before, after)
    mean_before, mean_after = sum(before) / len(before), sum(after) / len(after)
    spent = optimized.detailed_results.spent
    print(f"\nInstruction before:\n{program.signature.instructions}")
    print(f"\nInstruction after:\n{optimized.signature.instructions}")
    print(f"\nTest score before: {100 * mean_before:.1f}")
    print(f"Test score after:  {100 * mean_after:.1f}")
    print(f"Gain: {100 * (mean_after - mean_before):+.1f} points (95 % interval {100 * low:+.1f} to {100 * high:+.1f})")
    print(f"Optimising took {spent.metric_calls} metric calls, {spent.lm_calls} LM calls,", end=" ")
    print(f"{spent.input_tokens} input and {spent.output_tokens} output tokens.")
    print(f"Time, test runs included: {(time.perf_counter() - start) / 60:.1f} minutes.")


if __name__ == "__main__":
    main()
