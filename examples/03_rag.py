"""A pipeline of several predictors: one writes the query, one answers from what was found.

Customers ask about the appliances by name, the manuals know them by number only. So the first instruction is at fault
where the passage is wrong, the second where the source is missing. The metric tells what is wrong with the answer; the
optimiser carries that back through the retriever to the query.

    python examples/03_rag.py
    python examples/03_rag.py --model openai/gpt-4o-mini
"""

import random
from collections import Counter
from math import log

import dspy
from offline import manuals, model_argument, simulated

from dspy_dlpo import DLPOOptimizer

NUMBERS = {"kettle": "K7", "toaster": "T4", "blender": "B2"}
MANUALS = {
    "M1": "The G1 is cleaned with a damp cloth.",
    "M2": "The G1 has a warranty of 12 months.",
    "M3": "The power of the G1 is 1600 watts.",
    "M4": "The K7 is cleaned with clear vinegar.",
    "M5": "The K7 has a warranty of 24 months.",
    "M6": "The power of the K7 is 2200 watts.",
    "M7": "The T4 is cleaned with a dry brush.",
    "M8": "The T4 has a warranty of 12 months.",
    "M9": "The power of the T4 is 900 watts.",
    "M10": "The B2 is cleaned with warm water.",
    "M11": "The B2 has a warranty of 36 months.",
    "M12": "The power of the B2 is 600 watts.",
}
QUESTIONS = {
    "cleaned": ["How is the {} cleaned?", "What is the {} cleaned with?", "Can the {} be cleaned?"],
    "warranty": ["How long is the warranty of the {}?", "Has the {} a warranty?", "Is the {} still in warranty?"],
    "power": ["How much power takes the {}?", "What power has the {}?", "Tell me the power of the {}."],
}


def words(text):
    return text.lower().strip("?.").split()


def search(query, k=2):
    """Return the passages that share the rarest words with the query."""
    seen = Counter(word for passage in MANUALS.values() for word in set(words(passage)))
    weight = {word: log(1 + len(MANUALS) / number) for word, number in seen.items()}
    found = {key: sum(weight[word] for word in set(words(query)) & set(words(text))) for key, text in MANUALS.items()}
    return [f"{key}: {MANUALS[key]}" for key in sorted(found, key=found.get, reverse=True)[:k]]


class Rag(dspy.Module):
    def __init__(self):
        super().__init__()
        self.write_query = dspy.Predict(dspy.Signature("question -> query", "Write a query for the manuals."))
        self.answer = dspy.Predict(
            dspy.Signature("context: list[str], question -> answer", "Answer the question from the context.")
        )

    def forward(self, question):
        query = self.write_query(question=question).query
        return self.answer(context=search(query), question=question)


def metric(example, prediction, trace=None):
    """Half for the fact, half for its source."""
    notes = []
    if example.fact not in prediction.answer:
        notes.append(
            f"The context is not about the {example.device}: Search for the {example.device} as {example.code}."
        )
    if not prediction.answer.endswith(")"):
        notes.append("End with the number of the passage in brackets.")
    return dspy.Prediction(score=1 - len(notes) / 2, feedback=" ".join(notes))


def load_questions():
    """Return 9 train, 9 validation and 9 test questions, worded differently."""
    splits = [], [], []
    for device, code in NUMBERS.items():
        for topic, wordings in QUESTIONS.items():
            passage = next(text for text in MANUALS.values() if code in text and topic in text)
            fact = " ".join(words(passage)[-2:])  # Such as "24 months".
            for split, wording in zip(splits, wordings, strict=True):
                example = dspy.Example(question=wording.format(device), device=device, code=code, fact=fact)
                split.append(example.with_inputs("question"))
    for split in splits:
        random.Random(0).shuffle(split)
    return splits


def main(model=None):
    dspy.configure(lm=dspy.LM(model) if model else simulated(manuals))
    trainset, valset, testset = load_questions()
    optimizer = DLPOOptimizer(metric=metric, num_steps=4, num_threads=4, verbose=False)
    optimized = optimizer.compile(Rag(), trainset=trainset, valset=valset)
    result = optimized.detailed_results
    for record in result.history:
        for each in record.gradients:
            print(f"step {record.step + 1}: the critic blames {each.predictor} for {each.blame:.0%} of the failures")
    for name, predictor in optimized.named_predictors():
        print(f"--- {name} ---\n{predictor.signature.instructions}")
    test = result.evaluate(Rag(), testset, metric=metric)
    print(f"Test score {test.before:.2f} -> {test.after:.2f}, gain {test.gain}")


if __name__ == "__main__":
    main(model_argument(__doc__))
