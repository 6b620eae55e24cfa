from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_dlpo import DLPOOptimizer
from dspy_dlpo.runtime.budget import Budget, BudgetSpent
from dspy_dlpo.runtime.interrupt import ended_by_ctrl_c
from tests.scripted import Oracle, examples, metric, scripted_lm, world


@pytest.fixture(autouse=True)
def interrupts() -> Iterator[None]:
    """A process that was started in the background ignores them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def compiled(after: Any, **settings: Any) -> tuple[dspy.Module, int]:
    """Compile while `after(n)` is called with the number of each request; return the program and the requests."""
    requests: list[str] = []

    def answer(system: str, user: str) -> str:
        requests.append(user)
        after(len(requests))
        return world()(system, user)

    with dspy.context(lm=scripted_lm(answer)):
        optimizer = DLPOOptimizer(metric=metric, num_threads=1, verbose=False, **settings)
        program = optimizer.compile(dspy.Predict(Oracle), trainset=examples(40), valset=examples(10, 100))
    return program, len(requests)


def test_stop_file_ends_the_run_with_the_best_so_far_and_is_removed(tmp_path: Path) -> None:
    def stop(request: int) -> None:
        if request == 60:
            (tmp_path / "STOP").touch()

    program, requests = compiled(stop, num_steps=8, log_dir=tmp_path)
    result = program.detailed_results
    assert result.stopped == f"stopped by {tmp_path / 'STOP'}"
    assert requests == 60
    assert result.history[-1].outcome == "cut short"  # Not for want of a budget.
    assert result.val_aggregate_scores[result.best_idx] == max(result.val_aggregate_scores)
    assert not (tmp_path / "STOP").exists()


def test_same_call_goes_on_after_a_stop_and_ends_as_if_never_stopped(tmp_path: Path) -> None:
    def stop(request: int) -> None:
        if request == 60:
            (tmp_path / "STOP").touch()

    _, first = compiled(stop, num_steps=4, log_dir=tmp_path)
    resumed, second = compiled(lambda request: None, num_steps=4, log_dir=tmp_path)
    whole, every = compiled(lambda request: None, num_steps=4)
    assert first + second == every
    assert resumed.detailed_results.best_candidate == whole.detailed_results.best_candidate


def test_first_ctrl_c_ends_the_run_gracefully(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = threading.Event()
    stop = Budget.stop

    def stop_and_tell(budget: Budget, reason: str) -> None:
        stop(budget, reason)
        heard.set()

    def interrupt(request: int) -> None:
        if request == 60:
            os.kill(os.getpid(), signal.SIGINT)
            assert heard.wait(30)  # The main thread hears it when it gets its turn.

    monkeypatch.setattr(Budget, "stop", stop_and_tell)
    program, requests = compiled(interrupt, num_steps=8)
    assert program.detailed_results.stopped == "stopped by Ctrl-C"
    assert requests == 60
    assert "Ctrl-C again" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_second_ctrl_c_interrupts() -> None:
    budget = Budget()
    with pytest.raises(KeyboardInterrupt), ended_by_ctrl_c(budget):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(0.01)
    with pytest.raises(BudgetSpent, match="Ctrl-C"):
        budget.check()


def test_handler_of_the_user_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        with ended_by_ctrl_c(budget := Budget()):
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(0.01)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    assert heard == [signal.SIGINT]
    budget.check()
