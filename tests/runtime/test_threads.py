from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import dspy
import pytest

from dspy_dlpo.runtime.threads import run_in_threads
from tests.scripted import Oracle, examples, scripted_lm, world


@pytest.fixture
def threads_before() -> set[threading.Thread]:
    return set(threading.enumerate())


def test_each_result_is_kept_before_its_thread_begins_another(threads_before: set[threading.Thread]) -> None:
    happened: list[str] = []
    functions = [lambda number=number: happened.append(f"run {number}") for number in range(3)]
    run_in_threads(functions, lambda index, result: happened.append(f"keep {index}"), num_threads=1)
    assert happened == ["run 0", "keep 0", "run 1", "keep 1", "run 2", "keep 2"]
    assert set(threading.enumerate()) == threads_before


@pytest.mark.parametrize("num_threads", [1, 3, 6])
def test_as_many_run_at_once_as_there_are_threads(num_threads: int) -> None:
    together = threading.Barrier(num_threads, timeout=10)  # Passed only if so many wait at once.
    running: list[int] = []
    most: list[int] = []

    def call() -> None:
        running.append(1)
        most.append(len(running))
        together.wait()
        running.pop()
        together.wait()

    run_in_threads([call] * 6, lambda index, result: None, num_threads=num_threads)
    assert max(most) == num_threads


def test_nothing_to_do_is_done_at_once() -> None:
    run_in_threads([], lambda index, result: pytest.fail(), num_threads=4, timeout=1)


def test_call_that_hangs_is_abandoned_and_another_thread_takes_its_place(threads_before: set[threading.Thread]) -> None:
    release, ended = threading.Event(), threading.Event()

    def hang() -> str:
        release.wait(10)
        ended.set()
        return "too late"

    kept: dict[int, str | None] = {}
    functions = [hang, *[lambda: "in time"] * 20]
    run_in_threads(functions, kept.__setitem__, num_threads=1, timeout=0.1)
    assert kept == {0: None, **dict.fromkeys(range(1, 21), "in time")}
    (abandoned,) = {*threading.enumerate()} - threads_before
    release.set()
    abandoned.join(10)
    assert ended.is_set()
    assert kept[0] is None


def test_slow_call_does_not_idle_the_other_threads() -> None:
    others = threading.Semaphore(0)

    def slow() -> bool:
        return all(others.acquire(timeout=10) for _ in range(30))  # Ends once all others have.

    kept: dict[int, Any] = {}
    run_in_threads([slow, *[others.release] * 30], kept.__setitem__, num_threads=2)
    assert kept[0] is True


def test_first_exception_is_raised_once_what_runs_is_kept(threads_before: set[threading.Thread]) -> None:
    failed, kept, begun = threading.Event(), [], []

    def fail() -> None:
        failed.set()
        raise KeyError("first")

    def finish() -> None:
        failed.wait(10)

    functions = [finish, fail, *[lambda: begun.append(1)] * 100]
    with pytest.raises(KeyError, match="first"):
        run_in_threads(functions, lambda index, result: kept.append(index), num_threads=2)
    assert kept[0] == 0
    assert len(begun) == len(kept) - 1 < 100
    assert set(threading.enumerate()) == threads_before


def test_exception_while_keeping_a_result_is_raised_and_stops_the_rest(threads_before: set[threading.Thread]) -> None:
    begun: list[int] = []

    def full(index: int, result: object) -> None:
        raise OSError("disk is full")

    with pytest.raises(OSError, match="disk is full"):
        run_in_threads([lambda: begun.append(1)] * 100, full, num_threads=1)
    assert len(begun) == 1
    assert set(threading.enumerate()) == threads_before


def test_settings_of_the_caller_hold_in_the_threads_and_changes_do_not_leak() -> None:
    seen: list[object] = []

    def change() -> None:
        seen.append(dspy.settings.get("mine"))
        dspy.context(mine="leaked").__enter__()

    with dspy.context(mine="the caller's"):
        run_in_threads([change] * 3, lambda index, result: None, num_threads=2)
        assert dspy.settings.get("mine") == "the caller's"
    assert seen == ["the caller's"] * 3


# A whole run leaves its surroundings as they were.


async def in_the_event_loop(compile_it: Callable[[], dspy.Module]) -> dspy.Module:
    return compile_it()


@pytest.mark.parametrize("way", [in_the_event_loop, asyncio.to_thread], ids=["directly", "in a thread"])
@pytest.mark.parametrize("ends", ["well", "badly"])
def test_compile_works_inside_an_event_loop_and_leaves_no_thread_and_no_setting(
    make: Any, threads_before: set[threading.Thread], way: Any, ends: str
) -> None:
    def answer(system: str, user: str) -> str:
        if ends == "badly" and len(lm.engine.log) > 30:
            raise KeyboardInterrupt
        return world()(system, user)

    lm = scripted_lm(answer)

    async def main() -> dspy.Module:
        with dspy.context(lm=lm):
            before = dspy.settings.copy()
            try:
                return await way(lambda: make(num_threads=4).compile(dspy.Predict(Oracle), trainset=examples(40)))
            finally:
                assert dspy.settings.copy() == before
                assert {each for each in threading.enumerate() if each.name == "dspy-dlpo"} <= threads_before

    if ends == "well":
        assert asyncio.run(main()).detailed_results.history
    else:
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(main())
    assert set(threading.enumerate()) == threads_before
