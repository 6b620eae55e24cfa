"""Is a planted fault repaired where it is, on a real model? An extract-then-decide program on this machine.

Orders are planned by quarters: the first predictor writes down the month of the delivery, the second names the quarter.
The first is told to write down the customer's name instead, so the second never sees a month. What the metric says is
about the quarter. Run with the chain and without it (`chain=False`: each predictor is shown what the metric says of the
whole).

Run `python -m examples.benchmarks.planted_fault_local`; each run takes some minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import random
from itertools import product
from statistics import fmean

import dspy

from dspy_dlpo.core.records import Candidate
from dspy_dlpo.core.settings import Tuning
from dspy_dlpo.local import local_lm
from dspy_dlpo.optimizer.teleprompter import DLPOOptimizer
from dspy_dlpo.runtime.program import with_instructions

MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
NAMES = ("Anna Berg", "Tom Weaver", "Ines Costa", "Paul Novak", "Mary Chen", "Omar Haddad", "Lena Vogt", "Sam Field")
MESSAGES = (
    "{name} here. Please deliver the {number} chairs in {month}, at the back door.",
    "Hello, {name} speaking: we need {number} tables, delivery in {month} would be fine.",
    "{number} lamps for {month}, please. Regards, {name}",
    "Could we have the {number} shelves by {month}? They are for the new office. {name}",
)
RIGHT = Candidate(
    {
        "extract": "Write only the month of the delivery.",
        "decide": "January, February and March are Q1. April, May and June are Q2. July, August and September are Q3. "
        "October, November and December are Q4. Write the quarter.",
    }
)
FAULTY = Candidate({**RIGHT.instructions, "extract": "Write only the name of the customer."})


class Planning(dspy.Module):  # type: ignore[misc]  # DSPy is untyped.
    """Extract, then decide."""

    def __init__(self) -> None:
        super().__init__()
        self.extract = dspy.Predict("message -> keyword")
        self.decide = dspy.Predict("keyword -> quarter")

    def forward(self, message: str) -> dspy.Prediction:
        """Return the quarter."""
        return self.decide(keyword=self.extract(message=message).keyword)


def metric(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> dspy.Prediction:
    """Compare the quarters, and say which month was meant."""
    right = example.quarter in prediction.quarter
    feedback = "" if right else f"The delivery is wanted in {example.month}, which is in {example.quarter}."
    return dspy.Prediction(score=right, feedback=feedback)


def examples() -> list[dspy.Example]:
    """Return every message with every month, 48 in all, in a fixed random order."""
    rng = random.Random(0)
    found = []
    for (place, month), message in product(enumerate(MONTHS), MESSAGES):
        text = message.format(name=rng.choice(NAMES), number=rng.randint(2, 40), month=month)
        found.append(dspy.Example(message=text, month=month, quarter=f"Q{place // 3 + 1}").with_inputs("message"))
    rng.shuffle(found)
    return found


def main() -> None:
    """Print a line for each run, and how many were repaired."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--max-metric-calls", type=int, default=70)
    arguments = parser.parse_args()
    rows = examples()
    trainset, valset, testset = rows[:16], rows[16:26], rows[26:]
    lm = local_lm(max_tokens=24, stop=["[[ ## completed"])
    dspy.configure(lm=lm)

    def score(program: dspy.Module) -> float:
        return fmean(float(metric(row, program(**row.inputs())).score) for row in testset)

    student = with_instructions(Planning(), FAULTY)
    right, faulty = score(with_instructions(Planning(), RIGHT)), score(student)
    print(f"On {len(testset)} test messages: {right:.2f} without the fault, {faulty:.2f} with it.")
    print("Repaired: at least nine tenths of the difference made up.\n", flush=True)
    for chain in (True, False):
        repaired = 0
        for seed in range(arguments.seeds):
            optimizer = DLPOOptimizer(
                metric=metric,
                prompt_model=lm.copy(max_tokens=120),
                max_metric_calls=arguments.max_metric_calls,
                tuning=Tuning(batch_size=5, max_trial_examples=10, show_gold=False, chain=chain),
                num_threads=16,
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
