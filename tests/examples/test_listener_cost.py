from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from dspy_dlpo import Listener
from examples.benchmarks import listeners


@pytest.fixture(autouse=True)
def levels() -> Iterator[None]:
    """The benchmark quiets the logs of its process."""
    loggers = [logging.getLogger(name) for name in ("dspy", "dspy_dlpo")]
    before = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


def burn(seconds: float) -> None:
    began = time.thread_time()
    while time.thread_time() - began < seconds:
        pass


class Costly(Listener):
    """Takes 20 ms of CPU when the run starts, and 30 ms in a thread."""

    def on_run_start(self, run: Any, budget: Any) -> None:
        burn(0.02)
        self.done, self.end = threading.Event(), threading.Event()
        threading.Thread(target=self._work, daemon=True).start()

    def on_run_end(self, result: Any, program: Any) -> None:
        self.end.set()

    def on_step_end(self, record: Any) -> None:
        self.done.wait()

    def _work(self) -> None:
        burn(0.03)
        self.done.set()
        self.end.wait()


def test_cost_of_a_listener_is_that_of_its_methods_and_its_threads() -> None:
    free, costly = (listeners.run(listener, 440, 2) for listener in (None, Costly()))
    assert costly["share of CPU"] * costly["CPU"] >= 0.05
    assert costly["share of wall"] * costly["wall"] >= 0.05
    assert free["share of CPU"] < costly["share of CPU"]
    assert costly["metric calls"] == free["metric calls"] <= 440


def test_interval_of_the_median_misses_it_at_most_as_often_as_said() -> None:
    assert listeners.median_interval(range(1, 7)) == (1, 6)  # 2 / 2**6 is below 5 %.
    assert listeners.median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)
    assert listeners.median_interval(range(1, 101)) == (40, 61)  # As in tables.


def test_listener_benchmark_prints_a_row_for_each_view(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["listeners", "--runs", "1", "--max-metric-calls", "440", "--num-threads", "2"])
    listeners.main()
    out = capsys.readouterr().out
    assert "| live view | " in out
    assert "| plain lines | " in out
