"""Tune a one-step program on a language model that runs on this machine: no account, no server.

The task comes with the package: orders in free text, to be written in a notation that no model can guess, and a
reviewer who marks each line from 0 to 1 and notes what is wrong. `dspy-dlpo quickstart` does the same with options.

    python examples/01_quickstart.py
"""

import dspy

from dspy_dlpo import DLPOOptimizer
from dspy_dlpo.local import local_lm
from dspy_dlpo.local.quickstart import OrderLine, load_orders, review


def main() -> None:
    lm = local_lm(max_tokens=40, stop=["[[ ## completed"])  # What follows is only DSPy's end mark.
    dspy.configure(lm=lm)
    trainset, valset, testset = load_orders()
    program = dspy.Predict(OrderLine)

    optimizer = DLPOOptimizer(
        metric=review,
        prompt_model=lm.copy(max_tokens=120),
        max_metric_calls=100,
        batch_size=5,
        max_trial_examples=10,
        show_gold=False,  # The reviewer's notes are all there is.
        num_threads=1,
        log_dir="runs/quickstart",  # For `dspy-dlpo report runs/quickstart`.
    )
    optimized = optimizer.compile(program, trainset=trainset, valset=valset)

    result = optimized.detailed_results
    found = result.evaluate(program, testset, metric=review, num_threads=1)
    print(result.explain())
    print(f"Test score: {found.before:.3f} before, {found.after:.3f} after, gain {found.gain}")


if __name__ == "__main__":
    main()
