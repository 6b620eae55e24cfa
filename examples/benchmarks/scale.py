"""Scale: rollouts a second with each executor, and how many the process that keeps the books can take.

    python -m examples.benchmarks.scale

First a metric that needs 50 ms of CPU, with threads, processes and Ray on this machine. Then simulated workers that
only wait: what the driver books a second, with 10, 100 and 1,000 rollouts in flight.
"""

from __future__ import annotations

import argparse
import multiprocessing
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from heapq import heappop, heappush
from typing import Any

import dspy

from dspy_dlpo.benchmarks.simulation.scripted import fields, simulated_lm
from dspy_dlpo.core.records import Candidate, Rollout, Spending
from dspy_dlpo.runtime.budget import Budget
from dspy_dlpo.runtime.data import prepare
from dspy_dlpo.runtime.executor import Executor
from dspy_dlpo.runtime.forward import Forward
from dspy_dlpo.runtime.ledger import Ledger
from dspy_dlpo.runtime.metric import Metric
from dspy_dlpo.runtime.program import Student
from dspy_dlpo.runtime.remote import Reply

CPU_SECONDS = 0.05


def busy(example: dspy.Example, prediction: dspy.Prediction) -> float:
    """Use the CPU for a while."""
    end = time.thread_time() + CPU_SECONDS
    while time.thread_time() < end:
        pass
    return 1.0


def reply(system: str, user: str) -> str:
    return fields(answer="42")


def rate(executor: Executor | None, number: int, num_threads: int, metric: Callable[..., Any] = busy) -> float:
    """Return the rollouts a second, workers warm, ledger in memory."""
    rows = [dspy.Example(question=f"{index}?", answer="42").with_inputs("question") for index in range(number + 9)]
    data, ledger = prepare(rows[:-1], rows[-1:], 0), Ledger(None, {})
    with dspy.context(lm=simulated_lm(reply)):
        forward = Forward(
            Student(dspy.Predict("question -> answer")),
            Metric(metric, (0.0, 1.0)),
            data,
            ledger=ledger,
            budget=Budget(None),
            num_threads=num_threads,
            failure_score=0.0,
            executor=executor,
        )
        candidate = Candidate({"self": "Answer."})
        forward.pay([(candidate, name) for name in data.trainset[number:]])
        begin = time.perf_counter()
        forward.pay([(candidate, name) for name in data.trainset[:number]])
        seconds = time.perf_counter() - begin
    ledger.close()
    return number / seconds


class Waiting:
    """Simulated workers: each task is answered after a latency, whatever the number in flight."""

    def __init__(self, latency: float) -> None:
        self._latency = latency
        self._due: list[tuple[float, int, Future[Reply], Any]] = []
        self._changed = threading.Condition()
        self._number = 0
        threading.Thread(target=self._answer, daemon=True).start()

    def submit(self, function: Callable[..., Any], /, *args: Any) -> Future[Reply]:
        future: Future[Reply] = Future()
        with self._changed:
            self._number += 1
            heappush(self._due, (time.monotonic() + self._latency, self._number, future, args[-1]))
            self._changed.notify()
        return future

    def _answer(self) -> None:
        while True:
            with self._changed:
                while not self._due or self._due[0][0] > time.monotonic():
                    self._changed.wait(self._due[0][0] - time.monotonic() if self._due else None)
                _, _, future, task = heappop(self._due)
            spent = Spending(metric_calls=1, lm_calls=1, input_tokens=900, output_tokens=60)
            future.set_result(Reply(Rollout(task.candidate.id, task.name, 0.5, spent=spent)))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=100, help="of each kind with a real metric")
    number = parser.parse_args(arguments).rollouts
    print(f"A metric of {CPU_SECONDS * 1e3:.0f} ms CPU, {number} rollouts, workers warm:")
    rows: list[tuple[str, int, float]] = [("threads", 2, rate(None, number, 2))]
    for workers in (1, 2):
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            rows.append((f"processes, {workers}", workers, rate(pool, number, 2 * workers)))
    try:
        import ray

        from dspy_dlpo.runtime.cluster import RayExecutor
    except ImportError:
        print("Ray is not installed: pip install 'dspy-dlpo[ray]'")
    else:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        for workers in (1, 2):
            with RayExecutor(workers) as executor:
                rows.append((f"Ray actors, {workers}", workers, rate(executor, number, 2 * workers)))
        ray.shutdown()
    print(f"{'':16}{'a second':>10}{'overhead, ms':>14}")
    for name, workers, found in rows:
        lanes = 1 if name == "threads" else workers  # One thread at a time has the interpreter.
        print(f"{name:16}{found:10.1f}{1e3 * (lanes / found - CPU_SECONDS):14.1f}")
    print("\nThe driver alone, workers that answer after 100 ms:")
    print(f"{'in flight':16}{'a second':>10}{'of what they could':>20}")
    for in_flight in (10, 100, 1000):
        found = rate(Waiting(0.1), min(20 * in_flight, 5000), in_flight)
        print(f"{in_flight:<16}{found:10.0f}{found / (in_flight / 0.1):20.0%}")


if __name__ == "__main__":
    main()
