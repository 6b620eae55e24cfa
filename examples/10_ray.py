"""Rollouts on a Ray cluster: here one on this machine, with a simulated model and a metric that needs the CPU.

    pip install 'dspy-dlpo[ray]'
    python examples/10_ray.py

On a real cluster three lines change: `ray.init(address="auto")` on a machine of the cluster, `num_actors` as many as
should work, and `runtime_env={"pip": ["dspy-dlpo"], "working_dir": "."}`, so that its machines have the package and
your code. Ledger, budget and decisions stay in this process, and the run is the same as in threads.
"""

from __future__ import annotations

import time

import dspy
import ray

from dspy_dlpo import DLPOOptimizer
from dspy_dlpo.benchmarks.simulation.simulator import simulation
from dspy_dlpo.runtime.cluster import RayExecutor

SIMULATED = simulation("easy", seed=0)


def checked_with_effort(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> dspy.Prediction:
    """Score a reply, and use the CPU as a metric does that runs tests or compiles code."""
    end = time.process_time() + 0.02
    while time.process_time() < end:
        pass
    return SIMULATED.task.metric(example, prediction, trace)


def main() -> None:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    task = SIMULATED.task
    with RayExecutor(num_actors=2) as executor, dspy.context(lm=SIMULATED.lm):
        optimizer = DLPOOptimizer(
            checked_with_effort,
            prompt_model=SIMULATED.prompt_lm,
            executor=executor,
            num_threads=4,
            max_metric_calls=300,
            verbose=False,
        )
        optimized = optimizer.compile(task.program, task.trainset, valset=task.valset)
    ray.shutdown()
    result = optimized.detailed_results
    print("SIMULATED. Student and result on the valset:", end=" ")
    print(f"{result.val_aggregate_scores[0]:.3f}, {result.val_aggregate_scores[result.best_idx]:.3f}.")
    print(f"{result.spent.metric_calls} metric calls, {result.spent.seconds:.0f} s of work in 2 actors.")


if __name__ == "__main__":
    main()
