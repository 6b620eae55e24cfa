"""What a run may cost, and how it goes on after an interruption.

Four things here hold together: an estimate before anything is spent, limits, a folder that keeps every paid result
(`log_dir`), and the same call that goes on from there. The metric counts its calls, so that you can see that nothing
in the folder is paid for twice. You can also kill this script at any moment and start it again with the same `log_dir`.

    python examples/05_resume_and_budgets.py
    python examples/05_resume_and_budgets.py --model openai/gpt-4o-mini
"""

import contextlib
import signal
import tempfile

import dspy
from offline import helpdesk, model_argument, simulated
from tickets import Route, load_tickets, review

from dspy_dlpo import DLPOOptimizer

paid = []  # One entry for each metric call that was really made.


def metric(example, prediction, trace=None):
    paid.append(example)
    if len(paid) == 30:
        signal.raise_signal(signal.SIGINT)  # As if you pressed Ctrl-C now.
    return review(example, prediction)


def main(model=None):
    dspy.configure(lm=dspy.LM(model) if model else simulated(helpdesk))
    trainset, valset, testset = load_tickets()
    program = dspy.Predict(Route)

    def optimizer(max_metric_calls):
        """The same run with another limit. Further ones: max_lm_calls, max_tokens, max_cost, max_seconds, patience."""
        return DLPOOptimizer(
            metric=metric, max_metric_calls=max_metric_calls, log_dir=folder, num_threads=4, verbose=False
        )

    with tempfile.TemporaryDirectory() as folder:  # Use a folder that stays, such as "runs/helpdesk".
        print("Expected, before anything is spent:")
        print(optimizer(80).estimate(program, trainset=trainset, valset=valset))

        with contextlib.suppress(KeyboardInterrupt):
            optimizer(80).compile(program, trainset=trainset, valset=valset)
        print(f"\nInterrupted after {len(paid)} metric calls.")

        before = len(paid)
        result = optimizer(80).compile(program, trainset=trainset, valset=valset).detailed_results
        print(f"The same call went on: {len(paid) - before} metric calls more. It ended since {result.stopped}.")
        print(f"Best on the valset: {result.val_aggregate_scores[result.best_idx]:.2f}")

        before = len(paid)
        optimized = optimizer(200).compile(program, trainset=trainset, valset=valset)
        result = optimized.detailed_results
        print(f"With a limit of 200: {len(paid) - before} metric calls more. It ended since {result.stopped}.")
        print(f"Best on the valset: {result.val_aggregate_scores[result.best_idx]:.2f}")
        print(f"\nMetric calls of the run: {result.spent.metric_calls}. Really made: {len(paid)}.", end=" ")
        print("More than that are only those that were in flight when it was interrupted, at most one a thread.")

    test = result.evaluate(program, testset, metric=review)
    print(f"Test score {test.before:.2f} -> {test.after:.2f}, gain {test.gain}")


if __name__ == "__main__":
    main(model_argument(__doc__))
