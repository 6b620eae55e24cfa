"""Is a planted fault repaired where it is, on a real model? An extract-then-decide program on this machine.

A shop sorts messages to its desks: the first predictor writes down the article, the second names the desk. The first is
told to write down the customer's name instead, so the second never sees an article. What the metric says is about the
desk. Run with the chain and without it (`chain=False`, each predictor is shown what the metric says of the whole).

Run `python -m dspy_dlpo.benchmarks.planted_fault_local`; each run takes some minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import random
from statistics import fmean

import dspy

from dspy_dlpo.forward import with_instructions
from dspy_dlpo.local import local_lm
from dspy_dlpo.optimizer import DLPOOptimizer
from dspy_dlpo.records import Candidate

DESKS = {
    "garden": ["rake", "lawn mower", "watering can", "flower pot", "hedge trimmer", "garden hose", "wheelbarrow"],
    "kitchen": ["frying pan", "bread knife", "kettle", "whisk", "rolling pin", "soup ladle", "toaster"],
    "office": ["stapler", "desk lamp", "ring binder", "hole punch", "fountain pen", "paper shredder", "notepad"],
    "toys": ["teddy bear", "jigsaw puzzle", "kite", "toy train", "yo-yo", "doll", "spinning top"],
}
NAMES = ["Anna Berg", "Tom Weaver", "Ines Costa", "Paul Novak", "Mary Chen", "Omar Haddad", "Lena Vogt", "Sam Field"]
MESSAGES = [
    "Hello, {name} here. I would like to order a {article}, please send it by Friday.",
    "This is {name}. The {article} that I bought last week is broken. Can I get a new one?",
    "Good morning! Do you still have the {article} from your spring list? Kind regards, {name}",
    "{name} speaking, customer for ten years. What does a {article} cost now?",
]
RIGHT = Candidate(
    {
        "extract": "Write the article that the message is about.",
        "decide": "Name the desk that the subject belongs to: garden, kitchen, office or toys. Answer with one word.",
    }
)
FAULTY = Candidate({**RIGHT.instructions, "extract": "Write the name of the customer."})


class Desks(dspy.Module):  # type: ignore[misc]  # DSPy is untyped.
    """Extract the subject, then decide."""

    def __init__(self) -> None:
        super().__init__()
        self.extract = dspy.Predict("message -> subject")
        self.decide = dspy.Predict("subject -> desk")

    def forward(self, message: str) -> dspy.Prediction:
        """Return the desk."""
        return self.decide(subject=self.extract(message=message).subject)


def metric(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> dspy.Prediction:
    """Compare the desks, and say to which desk the article belongs."""
    right = example.desk in prediction.desk.lower()
    feedback = "" if right else f"The message is about a {example.article}, so the desk must be {example.desk}."
    return dspy.Prediction(score=right, feedback=feedback)


def examples() -> list[dspy.Example]:
    """Return two messages about each article, in a fixed random order."""
    rng = random.Random(0)
    found = []
    for desk, articles in DESKS.items():
        for article in articles:
            for message in rng.sample(MESSAGES, 2):
                text = message.format(name=rng.choice(NAMES), article=article)
                found.append(dspy.Example(message=text, article=article, desk=desk).with_inputs("message"))
    rng.shuffle(found)
    return found


def main() -> None:
    """Print a line for each run, and how many were repaired."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--max-metric-calls", type=int, default=80)
    arguments = parser.parse_args()
    rows = examples()
    trainset, valset, testset = rows[:20], rows[20:32], rows[32:]
    lm = local_lm(max_tokens=48, stop=["[[ ## completed"])
    dspy.configure(lm=lm)

    def score(program: dspy.Module) -> float:
        return fmean(float(metric(row, program(**row.inputs())).score) for row in testset)

    student = with_instructions(Desks(), FAULTY)
    right, faulty = score(with_instructions(Desks(), RIGHT)), score(student)
    print(f"On {len(testset)} test messages: {right:.2f} without the fault, {faulty:.2f} with it.")
    print("Repaired: at least nine tenths of the difference made up.\n", flush=True)
    for chain in (True, False):
        repaired = 0
        for seed in range(arguments.seeds):
            optimizer = DLPOOptimizer(
                metric=metric,
                prompt_model=lm.copy(max_tokens=120),
                max_metric_calls=arguments.max_metric_calls,
                batch_size=5,
                max_trial_examples=10,
                show_gold=False,
                chain=chain,
                num_threads=1,
                seed=seed,
                verbose=False,
            )
            optimized = optimizer.compile(student, trainset=trainset, valset=valset)
            after, spent = score(optimized), optimized.detailed_results.spent
            is_repaired = after >= right - 0.1 * (right - faulty)
            repaired += is_repaired
            blamed = [
                "+".join(f"{gradient.predictor} {gradient.blame:.1f}" for gradient in record.gradients)
                for record in optimized.detailed_results.history
                if record.gradients
            ]
            print(
                f"{'chain' if chain else 'no chain':<9} seed {seed}: {after:.2f} {'repaired' if is_repaired else '':<9}"
                f"{spent.metric_calls:>4} metric calls {spent.lm_calls:>4} LM calls; blamed {', '.join(blamed)}",
                flush=True,
            )
            for name, text in optimized.detailed_results.best_candidate.items():
                print(f"    {name}: {' '.join(text.split())}", flush=True)
        print(f"{'With' if chain else 'Without'} the chain: {repaired} of {arguments.seeds} repaired.\n", flush=True)


if __name__ == "__main__":
    main()
