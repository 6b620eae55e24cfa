"""Many threads, one pipeline: with a pipeline that answers after some steps."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from dspy_dlpo.local.batching import Batcher, Cancelled
from dspy_dlpo.runtime.threads import run_in_threads


class Handle:
    def __init__(self, tokens: int, steps: float) -> None:
        self.tokens = tokens
        self.left = steps
        self.cancelled = False

    def get_status(self) -> Any:
        return SimpleNamespace(name="CANCEL" if self.cancelled else "RUNNING" if self.left > 0 else "FINISHED")

    def can_read(self) -> bool:
        return True

    def read_all(self) -> list[int]:
        return [10 * self.tokens]

    def cancel(self) -> None:
        self.cancelled = True


class Pipeline:
    """Answers ten times the tokens after as many steps as the request says; a negative number breaks it."""

    def __init__(self) -> None:
        self.live: list[Handle] = []
        self.most = 0
        self.threads: set[str] = set()

    def add_request(self, number: int, tokens: int, steps: float) -> Handle:
        if tokens < 0:
            raise RuntimeError("This request is wrong.")
        self.live.append(handle := Handle(tokens, steps))
        return handle

    def has_non_finished_requests(self) -> bool:
        return bool(self.live)

    def step(self) -> None:
        self.threads.add(threading.current_thread().name)
        self.most = max(self.most, len(self.live))
        time.sleep(0.005)
        for handle in self.live:
            if handle.left < 0:
                raise RuntimeError("The pipeline broke.")
            handle.left -= 1
        self.live = [handle for handle in self.live if handle.left > 0 and not handle.cancelled]


@pytest.fixture
def pipeline() -> Pipeline:
    return Pipeline()


@pytest.fixture
def batcher(pipeline: Pipeline) -> Iterator[Batcher]:
    made = Batcher(pipeline)
    yield made
    made.close()


def until(condition: Any) -> bool:
    """Whether the condition comes true within five seconds."""
    end = time.monotonic() + 5
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return bool(condition())


def test_requests_of_many_threads_are_answered_together_each_with_its_own_answer(
    batcher: Batcher, pipeline: Pipeline
) -> None:
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda number: batcher.ask(number, 20), range(24)))
    assert answers == [10 * number for number in range(24)]
    assert pipeline.most > 12
    assert pipeline.threads == {"dspy-dlpo-local-model"}


def test_cancelling_returns_at_once_and_frees_the_slots(batcher: Batcher, pipeline: Pipeline) -> None:
    raised: list[BaseException] = []

    def ask(number: int) -> None:
        with pytest.raises(Cancelled) as error:
            batcher.ask(number, float("inf"))
        raised.append(error.value)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    assert until(lambda: len(pipeline.live) == 24)
    assert batcher.in_flight == 24
    began = time.monotonic()
    batcher.cancel()
    for thread in threads:
        thread.join()
    assert time.monotonic() - began < 0.4
    assert len(raised) == 24
    assert until(lambda: not pipeline.live)
    assert batcher.in_flight == 0
    assert batcher.ask(7, 1) == 70


def test_interrupt_of_the_waiting_thread_frees_its_slot(
    batcher: Batcher, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(event: threading.Event, timeout: float | None = None) -> bool:
        assert until(lambda: len(pipeline.live) == 1)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("dspy_dlpo.local.batching.threading.Event.wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            batcher.ask(1, float("inf"))
    assert until(lambda: not pipeline.live)
    assert batcher.ask(2, 1) == 20


def test_call_that_a_run_has_given_up_frees_its_slot(batcher: Batcher, pipeline: Pipeline) -> None:
    kept: dict[int, Any] = {}
    calls = [lambda: batcher.ask(1, float("inf")), lambda: batcher.ask(2, 3)]
    run_in_threads(calls, kept.__setitem__, num_threads=2, timeout=0.3)
    assert kept == {0: None, 1: 20}
    assert until(lambda: not pipeline.live)


def test_wrong_request_fails_alone(batcher: Batcher) -> None:
    with ThreadPoolExecutor(2) as pool:
        good, bad = pool.submit(batcher.ask, 1, 20), pool.submit(batcher.ask, -1, 20)
        with pytest.raises(RuntimeError, match="This request is wrong"):
            bad.result()
        assert good.result() == 10
    assert batcher.is_open


def test_broken_pipeline_is_told_to_all_who_wait_and_to_those_who_come_later(batcher: Batcher) -> None:
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(batcher.ask, 1, steps) for steps in (50, 50, -1)]
        for each in asked:
            with pytest.raises(RuntimeError, match="The pipeline broke"):
                each.result()
    assert not batcher.is_open
    with pytest.raises(RuntimeError, match="The pipeline broke"):
        batcher.ask(1, 1)


def test_closing_ends_what_is_in_flight_and_the_thread(pipeline: Pipeline) -> None:
    batcher = Batcher(pipeline)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(batcher.ask, 1, float("inf"))
        assert until(lambda: pipeline.live)
        batcher.close()
        with pytest.raises(Cancelled):
            asked.result()
    assert "dspy-dlpo-local-model" not in {thread.name for thread in threading.enumerate()}
    with pytest.raises(Cancelled, match="closed"):
        batcher.ask(1, 1)
