"""What a run may cost, how you stop it, and how it goes on.

An estimate comes before anything is spent, limits bound the bill, and `log_dir` keeps every paid result: the same call
goes on from there, whatever ended it. Here Ctrl-C ends the first call, a file named STOP the second, and the limit the
third; the fourth has a higher limit. The metric counts its calls, so that you can see that none is paid for twice.

    python examples/05_resume_and_budgets.py
    python examples/05_resume_and_budgets.py --model openai/gpt-4o-mini
"""

import shutil
import signal
import tempfile
from pathlib import Path

import dspy
from offline import helpdesk, model_argument, simulated
from tickets import Route, load_tickets, review

from dspy_dlpo import DLPOOptimizer

folder = Path(tempfile.mkdtemp())  # Use one that stays, such as runs/helpdesk.
paid = []  # One entry for each metric call that is really made.


def metric(example, prediction, trace=None):
    paid.append(example)
    if len(paid) == 30:
        signal.raise_signal(signal.SIGINT)  # As if you pressed Ctrl-C now. A second one would interrupt at once.
    if len(paid) == 50:
        (folder / "STOP").touch()  # As if you did so in another terminal.
    return review(example, prediction)


def main(model=None):
    dspy.configure(lm=dspy.LM(model) if model else simulated(helpdesk))
    trainset, valset, testset = load_tickets()
    program = dspy.Predict(Route)

    # Other limits: num_steps, max_lm_calls, max_tokens, max_cost (dollars), max_seconds, patience.
    prices = {"simulated/model": (0.5, 1.5)}  # Dollars per million tokens in and out, for models that no table knows.
    settings = {"metric": metric, "log_dir": folder, "prices": prices, "num_threads": 1, "verbose": False}
    optimizer = DLPOOptimizer(max_metric_calls=100, **settings)
    print(optimizer.estimate(program, trainset=trainset, valset=valset), "\n")

    for limit in (100, 100, 100, 200):
        before = len(paid)
        optimizer = DLPOOptimizer(max_metric_calls=limit, **settings)
        optimized = optimizer.compile(program, trainset=trainset, valset=valset)
        result = optimized.detailed_results
        print(f"limit {limit}: {len(paid) - before} metric calls more, then: {result.stopped}")
        print(f"    best so far on the valset: {result.val_aggregate_scores[result.best_idx]:.2f}")

    print(f"\nMetric calls of the whole run: {result.spent.metric_calls}; really made: {len(paid)}")
    test = result.evaluate(program, testset, metric=review)
    print(f"Test score {test.before:.2f} -> {test.after:.2f}, gain {test.gain}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main(model_argument(__doc__))
