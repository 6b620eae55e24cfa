"""Chaos: does a run on Ray end as an undisturbed one does, if an actor is killed at a random moment?

    python -m examples.benchmarks.chaos --runs 30

Each run is made on two actors with a simulated model, once undisturbed and then with an actor killed at a moment drawn
from the run's usual length. Compared are candidates, scores, steps, and what finished rollouts have cost.
"""

from __future__ import annotations

import argparse
import random
import threading
import time
from typing import Any

import dspy
import ray

from dspy_dlpo import DLPOOptimizer
from dspy_dlpo.benchmarks.simulation.simulator import simulation
from dspy_dlpo.runtime.cluster import RayExecutor


def course(executor: RayExecutor | None, seed: int) -> dict[str, Any]:
    """Make a run; return what must be the same whatever happens to actors, by name."""
    simulated = simulation("easy", seed=seed, latency=0.01)
    with dspy.context(lm=simulated.lm):
        optimizer = DLPOOptimizer(
            simulated.task.metric,
            prompt_model=simulated.prompt_lm,
            executor=executor,
            num_threads=4,
            max_metric_calls=150,
            verbose=False,
        )
        tuned = optimizer.compile(simulated.task.program, simulated.task.trainset, valset=simulated.task.valset)
    result = tuned.detailed_results
    spent = result.spent.metric_calls, result.spent.lm_calls, result.spent.tokens
    parts = {"candidates": [each.id for each in result.candidates], "scores": result.val_aggregate_scores}
    for record in result.history:
        failures = [(each.example, each.score, each.error, each.lost) for each in record.failures]
        parts |= {
            f"step {record.step}, {name}": part
            for name, part in [
                ("minibatch", record.minibatch),
                ("loss", record.loss),
                ("failures", failures),
                ("candidates", [each.id for each in record.candidates]),
                ("trial", record.trial),
                ("lost", record.lost),
                ("errors", record.errors),
            ]
        }
    return {**parts, "spent": spent, "stopped": result.stopped}


def differences(calm: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Return in words where two runs differ, what happened first at the beginning."""
    steps_first = sorted({**calm, **other}, key=lambda name: not name.startswith("step"))
    return [
        f"  {name}: {calm.get(name)} undisturbed, {other.get(name)} with an actor killed"
        for name in steps_first
        if calm.get(name) != other.get(name)
    ]


def disturbed(executor: RayExecutor, seed: int, after: float) -> dict[str, Any]:
    """Make a run in which an actor is killed after so many seconds."""
    victim = random.Random(f"{seed}/victim").choice(executor.actors)
    timer = threading.Timer(after, lambda: ray.kill(victim))
    timer.start()
    try:
        return course(executor, seed)
    finally:
        timer.cancel()
        timer.join()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=30)
    runs = parser.parse_args(arguments).runs
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    same = killed = 0
    with RayExecutor(2) as executor:
        course(executor, 0)  # Actors start and import what they need.
        for seed in range(runs):
            begin = time.perf_counter()
            calm = course(executor, seed)
            after = random.Random(seed).uniform(0, 0.8 * (time.perf_counter() - begin))
            before = executor.actors
            found = differences(calm, disturbed(executor, seed, after))
            was_killed = executor.actors != before
            same, killed = same + (not found), killed + was_killed
            print(
                f"run {seed}: an actor killed after {after:.2f} s: {'DIFFERENT' if found else 'same'}"
                + ("" if was_killed else " (it had nothing to do)"),
                *found[:4],
                sep="\n",
                flush=True,
            )
    ray.shutdown()
    print(f"{same} of {runs} runs ended as the undisturbed one, at the same cost; in {killed} a working actor died.")
    return int(same < runs)


if __name__ == "__main__":
    raise SystemExit(main())
