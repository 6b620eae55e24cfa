"""What listeners cost in a run whose language model answers at once, so that nothing hides it.

    python -m examples.benchmarks.listeners

The program, metric and model are those of `examples.benchmarks.engine`. A listener's cost is measured inside the run:
CPU and wall time of everything it hears, and CPU time of the threads it starts, over those of the whole compilation.
Runs of each kind alternate; the first of each, with its imports, does not count. (Runs with and without a listener,
side by side, differ by chance far more than by what the listener costs.)

The live view draws on a terminal that leads nowhere. MLflow writes to a SQLite file; give `--mlflow` for it.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from statistics import median
from typing import Any

import dspy
from rich.console import Console

from dspy_dlpo.benchmarks.extras import extra
from dspy_dlpo.benchmarks.simulation.scripted import simulated_lm
from dspy_dlpo.core.records import Candidate
from dspy_dlpo.core.steps import RunInfo, StepRecord
from dspy_dlpo.descent.listeners import Listener
from dspy_dlpo.optimizer.teleprompter import DLPOOptimizer
from dspy_dlpo.runtime.budget import Budget
from dspy_dlpo.views.lines import Lines
from dspy_dlpo.views.live import LiveView
from dspy_dlpo.views.result import DLPOResult
from examples.benchmarks.engine import examples, metric, program, script

_COLUMNS = {"share of CPU": 100.0, "share of wall": 100.0, "ms a step": 1.0}


class Metered(Listener):
    """Passes everything on to a listener and measures what that takes.

    Args:
        inner: The listener; None for one that does nothing.

    Attributes:
        cpu: CPU seconds in its methods and in the threads it started.
        wall: Seconds in its methods, and CPU seconds in the threads: they keep Python from the rest.
    """

    def __init__(self, inner: Listener | None) -> None:
        self._inner = inner or Listener()
        self._threads: set[threading.Thread] = set()
        self.cpu = self.wall = 0.0

    def on_run_start(self, run: RunInfo, budget: Budget) -> None:
        """Pass on, and see which threads that starts."""
        others = {*threading.enumerate()}
        with self._measured():
            self._inner.on_run_start(run, budget)
        self._threads = {*threading.enumerate()} - others

    def on_candidate(self, candidate: Candidate, step: int) -> None:
        """Pass on."""
        with self._measured():
            self._inner.on_candidate(candidate, step)

    def on_step_end(self, record: StepRecord) -> None:
        """Pass on."""
        with self._measured():
            self._inner.on_step_end(record)

    def on_run_end(self, result: DLPOResult, program: dspy.Module) -> None:
        """Read the clocks of the threads, then pass on."""
        for thread in self._threads:
            if thread.ident is not None and thread.is_alive():
                seconds = time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
                self.cpu, self.wall = self.cpu + seconds, self.wall + seconds
        with self._measured():
            self._inner.on_run_end(result, program)

    @contextmanager
    def _measured(self) -> Iterator[None]:
        cpu, wall = time.thread_time(), time.perf_counter()
        yield
        self.cpu += time.thread_time() - cpu
        self.wall += time.perf_counter() - wall


def run(listener: Listener | None, max_metric_calls: int, num_threads: int) -> dict[str, float]:
    """Compile once with a listener; return its shares of the run, and what the run took."""
    metered = Metered(listener)
    trainset = examples(800)
    optimizer = DLPOOptimizer(
        metric=metric,
        max_metric_calls=max_metric_calls,
        num_threads=num_threads,
        listeners=[metered],
        verbose=False,
    )
    with dspy.context(lm=simulated_lm(script)):
        cpu, wall = time.process_time(), time.perf_counter()
        result = optimizer.compile(program(), trainset=trainset[:600], valset=trainset[600:]).detailed_results
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {
        "share of CPU": metered.cpu / cpu,
        "share of wall": metered.wall / wall,
        "ms a step": 1e3 * metered.wall / len(result.history),
        "CPU": cpu,
        "wall": wall,
        "metric calls": result.total_metric_calls,
        "steps": len(result.history),
    }


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval of the median between two of the values, exact for every distribution (the sign test).

    >>> median_interval(range(1, 21))
    (6, 15)
    """
    ranked, chance, rank = sorted(values), 0.5 ** len(values), 0
    while chance <= (1 - confidence) / 2:
        rank += 1
        chance += math.comb(len(values), rank) * 0.5 ** len(values)
    rank = max(rank, 1)  # With less than six values, all of them: the interval is then less sure.
    return ranked[rank - 1], ranked[-rank]


def measure(
    make: Mapping[str, Callable[[], Listener | None]], num_runs: int, **settings: Any
) -> dict[str, dict[str, list[float]]]:
    """Return the figures of so many alternate runs of each kind, after one that does not count."""
    columns: dict[str, dict[str, list[float]]] = {name: {} for name in make}
    for number in range(-1, num_runs):
        for name, listener in make.items():
            figures = run(listener(), **settings)
            for label, value in figures.items() if number >= 0 else ():
                columns[name].setdefault(label, []).append(value)
    return columns


def main() -> None:
    """Print the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--max-metric-calls", type=int, default=1000)
    parser.add_argument("--num-threads", type=int, default=8)
    parser.add_argument("--mlflow", action="store_true")
    arguments = parser.parse_args()
    logging.getLogger("dspy").setLevel(logging.WARNING)
    logging.getLogger("dspy_dlpo").setLevel(logging.ERROR)  # Without its remark on gains that are not sure.
    with open(os.devnull, "w") as nowhere, tempfile.TemporaryDirectory() as folder:
        make: dict[str, Callable[[], Listener | None]] = {
            "none": lambda: None,
            "live view": lambda: LiveView(Console(file=nowhere, force_terminal=True, width=100, height=50)),
            "plain lines": Lines,
        }
        if arguments.mlflow:
            make["MLflow"] = _mlflow(Path(folder))
        with redirect_stderr(nowhere):
            columns = measure(
                make,
                arguments.runs,
                max_metric_calls=arguments.max_metric_calls,
                num_threads=arguments.num_threads,
            )
    one = {label: median(values) for label, values in columns["none"].items()}
    print(
        f"{arguments.runs} runs of each kind; without a listener {one['metric calls']:.0f} metric calls in "
        f"{one['steps']:.0f} steps, {one['CPU']:.2f} s CPU, {one['wall']:.2f} s wall. Medians with 95 % "
        "intervals.\n"
    )
    print("| listener | % of CPU | % of wall | wall ms a step |\n| --- | ---: | ---: | ---: |")
    for name, figures in columns.items():
        if name != "none":
            cells = [_cell(figures[label], unit) for label, unit in _COLUMNS.items()]
            print(f"| {' | '.join([name, *cells])} |")


def _cell(values: Sequence[float], unit: float) -> str:
    low, high = median_interval(values)
    return f"{unit * median(values):.2f} ({unit * low:.2f} to {unit * high:.2f})"


def _mlflow(folder: Path) -> Callable[[], Listener]:
    from dspy_dlpo.views.trackers import MLflowListener

    mlflow: Any = extra("mlflow", "mlflow")
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    mlflow.set_experiment(
        experiment_id=mlflow.create_experiment("benchmark", artifact_location=(folder / "artifacts").as_uri())
    )
    return MLflowListener


if __name__ == "__main__":
    main()
