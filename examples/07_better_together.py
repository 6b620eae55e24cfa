"""One optimiser after another: `dspy.BetterTogether` with DLPO for the instruction and few-shot demos.

DLPO writes rules for what the reviewer notes; `BootstrapFewShot` then adds demos to the program, which keeps its new
instruction. `BetterTogether` scores the program after every stage on the valset and returns the best.

    python examples/07_better_together.py
    python examples/07_better_together.py --model openai/gpt-4o-mini
"""

import dspy
from offline import helpdesk, model_argument, simulated
from tickets import Route, load_tickets, review

from dspy_dlpo import DLPOOptimizer, Tuning


def right(example, prediction, trace=None):
    return review(example, prediction).score


def main(model=None):
    lm = dspy.LM(model) if model else simulated(helpdesk)
    dspy.configure(lm=lm)
    trainset, valset, testset = load_tickets()
    program = dspy.Predict(Route)
    program.set_lm(lm)  # BetterTogether wants a model on every predictor.

    optimizer = dspy.BetterTogether(
        metric=right,
        dlpo=DLPOOptimizer(metric=review, num_steps=1, tuning=Tuning(batch_size=4), num_threads=4, verbose=False),
        demos=dspy.BootstrapFewShot(metric=right, max_bootstrapped_demos=2, max_labeled_demos=8),
    )
    optimized = optimizer.compile(program, trainset=trainset, valset=valset, strategy="dlpo -> demos", seed=0)

    for each in optimized.candidate_programs:
        print(f"valset {each['score']:5.1f} after: {each['strategy'] or 'nothing'}")
    print(f"--- instruction ---\n{optimized.signature.instructions}")
    print("--- demos ---", *(f"{demo.message} -> {demo.team}" for demo in optimized.demos), sep="\n")
    evaluate = dspy.Evaluate(devset=testset, metric=right, num_threads=4)
    before, after = evaluate(program).score, evaluate(optimized).score
    print(f"Test score {before / 100:.2f} -> {after / 100:.2f}")


if __name__ == "__main__":
    main(model_argument(__doc__))
