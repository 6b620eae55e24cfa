"""Which optimiser suits a task? DLPO, COPRO and GEPA with the same splits, models and number of metric calls.

One run tells little: optimisers are random, and so are their results. `compare` runs each several times with different
seeds, gives every optimiser the same budget, and tests what each returns on examples that none of them saw. Its results
stay in a folder; what is there is not run again.

    python examples/08_comparing_optimisers.py
    python examples/08_comparing_optimisers.py --model openai/gpt-4o-mini

Without a model the task is made up too: orders with codes that follow hidden rules, and a model that plays critic and
proposer for all optimisers with the same skills. Such numbers show how the machinery works, not which one wins on your
task.
"""

import tempfile
from statistics import fmean

import dspy
from offline import SIMULATED, model_argument
from tickets import Route, load_tickets, review

from dspy_dlpo.benchmarks.compare import Setting, compare
from dspy_dlpo.benchmarks.simulation.simulator import simulation
from dspy_dlpo.benchmarks.tasks.task import Task

OPTIMIZERS = ["none", "copro", "gepa", "dlpo"]
SEEDS = range(3)
MAX_METRIC_CALLS = 200


def simulated(seed):
    found = simulation("easy", seed)
    return Setting(found.task, found.lm, found.prompt_lm, found.program_accuracy)


def with_model(name):
    """Put your own program, metric and examples here."""
    trainset, valset, testset = load_tickets()
    task = Task("tickets", dspy.Predict(Route), {}, review, trainset, valset, testset)
    return lambda seed: Setting(task, dspy.LM(name))


def main(model=None):
    if not model:
        print(SIMULATED)
    with tempfile.TemporaryDirectory() as folder:  # Use one that stays, and a comparison can go on later.
        cells = compare(
            {"task": with_model(model) if model else simulated},
            OPTIMIZERS,
            folder=folder,
            max_metric_calls=MAX_METRIC_CALLS,
            seeds=SEEDS,
            verbose=False,
        )
    print(f"{'optimiser':<10}{'mean test score':>16}{'of each seed':>20}{'metric calls':>14}{'LM calls':>10}")
    for name in OPTIMIZERS:
        found = [cell for cell in cells if cell.optimizer == name]
        scores = "  ".join(f"{cell.score:.2f}" for cell in found)
        calls = [round(fmean(getattr(cell, what) for cell in found)) for what in ("metric_calls", "lm_calls")]
        print(f"{name:<10}{fmean(cell.score for cell in found):>16.2f}{scores:>20}{calls[0]:>14}{calls[1]:>10}")


if __name__ == "__main__":
    main(model_argument(__doc__))
