"""A ReAct agent with tools: the instruction is tuned, the tool protocol inside it is not touched.

`dspy.ReAct` writes the names of the tools, their arguments and the form of a call into its instruction. An optimiser
that rewrites that text breaks the agent; here it is protected without being asked.

    python examples/04_react.py
    python examples/04_react.py --model openai/gpt-4o-mini
"""

import re

import dspy
from offline import agent, model_argument, simulated

from dspy_dlpo import DLPOOptimizer

LIST_PRICES = {"lamp": 30, "chair": 45, "desk": 120, "shelf": 60, "clock": 35, "sofa": 480, "vase": 18, "bed": 350}
OFFERS = {"lamp": 24, "desk": 99, "clock": 28, "sofa": 395}
QUESTIONS = [
    "What is the price of the {}?",
    "Tell me the price of the {}, please.",
    "I need the price of the {} today.",
]


def list_price(article: str) -> str:
    """The price of an article in the catalogue."""
    return f"The {article} is listed at {LIST_PRICES[article]} euros."


def offer(article: str) -> str:
    """The price of an article this week, if there is an offer."""
    return f"This week {OFFERS[article]} euros." if article in OFFERS else "There is no offer."


def metric(example, prediction, trace=None):
    """Half for the amount, half for the unit."""
    notes = []
    if not re.search(rf"\b{example.euros}(00)?\b", prediction.answer):
        notes.append("The trajectory lacks the offer: Ask the tool offer before you finish.")
    if "cents" not in prediction.answer:
        notes.append("Write prices in cents.")
    return dspy.Prediction(score=1 - len(notes) / 2, feedback=" ".join(notes))


def load_questions():
    """Return 8 train, 8 validation and 8 test questions, worded differently."""
    prices = {**LIST_PRICES, **OFFERS}
    return [
        [dspy.Example(question=asked.format(each), euros=prices[each]).with_inputs("question") for each in prices]
        for asked in QUESTIONS
    ]


def main(model=None):
    dspy.configure(lm=dspy.LM(model) if model else simulated(agent))
    trainset, valset, testset = load_questions()
    program = dspy.ReAct(dspy.Signature("question -> answer", "Answer the customer."), [list_price, offer], max_iters=4)
    optimizer = DLPOOptimizer(metric=metric, num_steps=4, num_threads=4, verbose=False)
    optimized = optimizer.compile(program, trainset=trainset, valset=valset)

    protocol = program.react.signature.instructions.removeprefix("Answer the customer.\n").strip()
    instruction = optimized.react.signature.instructions
    print(f"--- react ---\n{instruction}\n--- extract ---\n{optimized.extract.predict.signature.instructions}\n")
    print(f"The tool protocol stands as it was: {protocol in instruction}")
    test = optimized.detailed_results.evaluate(program, testset, metric=metric)
    print(f"Test score {test.before:.2f} -> {test.after:.2f}, gain {test.gain}")


if __name__ == "__main__":
    main(model_argument(__doc__))
