"""Many threads, one worker: with a worker that answers after some steps."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dspy_dlpo.local.batching import Batcher, Cancelled, Process, Refused
from dspy_dlpo.runtime.threads import run_in_threads


class Worker:
    """Answers ten times the number it is asked for, after as many steps as the request says; a negative one fails."""

    def __init__(self) -> None:
        self.live: dict[int, list[float]] = {}
        self.most = 0
        self.threads: set[str] = set()
        self.is_closed = False

    def step(self, message: dict[str, Any]) -> dict[str, Any]:
        self.threads.add(threading.current_thread().name)
        failed: list[Any] = []
        for each in message["new"]:
            number, steps = each["messages"], each["settings"]
            if number < 0:
                failed.append([each["id"], {"kind": "RuntimeError", "text": "This request is wrong."}])
            else:
                self.live[each["id"]] = [number, steps]
        for number in message["cancelled"]:
            self.live.pop(number, None)
        self.most = max(self.most, len(self.live))
        time.sleep(0.005)
        done = []
        for number, each in [*self.live.items()]:
            if each[1] < 0:
                raise RuntimeError("The worker broke.")
            each[1] -= 1
            if each[1] <= 0:
                done.append([number, 10 * self.live.pop(number)[0]])
        return {"failed": failed, "done": done}

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.fixture
def batcher(worker: Worker) -> Iterator[Any]:
    made = Batcher(worker)
    yield made
    made.close()


def until(condition: Any) -> bool:
    """Whether the condition comes true within five seconds."""
    end = time.monotonic() + 5
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return bool(condition())


def test_requests_of_many_threads_are_answered_together_each_with_its_own_answer(batcher: Any, worker: Worker) -> None:
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda number: batcher.ask(number, 20), range(24)))
    assert answers == [10 * number for number in range(24)]
    assert worker.most > 12
    assert worker.threads == {"dspy-dlpo-local-model"}


def test_cancelling_returns_at_once_and_frees_the_slots(batcher: Any, worker: Worker) -> None:
    raised: list[BaseException] = []

    def ask(number: int) -> None:
        with pytest.raises(Cancelled) as error:
            batcher.ask(number, float("inf"))
        raised.append(error.value)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    assert until(lambda: len(worker.live) == 24)
    assert batcher.in_flight == 24
    began = time.monotonic()
    batcher.cancel()
    for thread in threads:
        thread.join()
    assert time.monotonic() - began < 0.4
    assert len(raised) == 24
    assert until(lambda: not worker.live)
    assert batcher.in_flight == 0
    assert batcher.ask(7, 1) == 70


def test_interrupt_of_the_waiting_thread_frees_its_slot(
    batcher: Any, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(event: threading.Event, timeout: float | None = None) -> bool:
        assert until(lambda: len(worker.live) == 1)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("dspy_dlpo.local.batching.threading.Event.wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            batcher.ask(1, float("inf"))
    assert until(lambda: not worker.live)
    assert batcher.ask(2, 1) == 20


def test_call_that_a_run_has_given_up_frees_its_slot(batcher: Any, worker: Worker) -> None:
    kept: dict[int, Any] = {}
    calls = [lambda: batcher.ask(1, float("inf")), lambda: batcher.ask(2, 3)]
    run_in_threads(calls, kept.__setitem__, num_threads=2, timeout=0.3)
    assert kept == {0: None, 1: 20}
    assert until(lambda: not worker.live)


def test_wrong_request_fails_alone(batcher: Any) -> None:
    with ThreadPoolExecutor(2) as pool:
        good, bad = pool.submit(batcher.ask, 1, 20), pool.submit(batcher.ask, -1, 20)
        with pytest.raises(RuntimeError, match="This request is wrong"):
            bad.result()
        assert good.result() == 10
    assert batcher.is_open


def test_broken_worker_is_told_to_all_who_wait_and_to_those_who_come_later(batcher: Any) -> None:
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(batcher.ask, 1, steps) for steps in (50, 50, -1)]
        for each in asked:
            with pytest.raises(RuntimeError, match="The worker broke"):
                each.result()
    assert not batcher.is_open
    with pytest.raises(RuntimeError, match="The worker broke"):
        batcher.ask(1, 1)


def test_closing_ends_what_is_in_flight_and_the_thread(worker: Worker) -> None:
    batcher: Any = Batcher(worker)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(batcher.ask, 1, float("inf"))
        assert until(lambda: worker.live)
        batcher.close()
        with pytest.raises(Cancelled):
            asked.result()
    assert "dspy-dlpo-local-model" not in {thread.name for thread in threading.enumerate()}
    with pytest.raises(Cancelled, match="closed"):
        batcher.ask(1, 1)
    assert worker.is_closed


@pytest.fixture
def genai(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for `openvino_genai` in the process: a request ends after one step, "die" ends the process."""
    (tmp_path / "openvino_genai.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


STAND_IN = """
import os
from types import SimpleNamespace as Some


class Tokens(list):
    shape = property(lambda self: (1, len(self)))


class Tokenizer:
    chat_template = "some"
    apply_chat_template = staticmethod(lambda messages, add_generation_prompt: messages[-1]["content"])
    encode = staticmethod(lambda text, add_special_tokens: Some(input_ids=Tokens(text)))
    decode = staticmethod("".join)


class ContinuousBatchingPipeline:
    def __init__(self, path, *rest):
        print("What libraries print must not get between the replies.")
        if path == "bad.gguf":
            raise RuntimeError("no such architecture")

    get_tokenizer = staticmethod(Tokenizer)
    get_config = staticmethod(Some)
    has_non_finished_requests = staticmethod(lambda: False)

    def add_request(self, number, tokens, config):
        if "".join(tokens) == "die":
            os._exit(7)
        output = Some(generated_ids=tokens[::-1], finish_reason=Some(name="STOP"))
        return Some(get_status=lambda: Some(name="FINISHED"), can_read=lambda: True, read_all=lambda: [output])


SchedulerConfig = StructuredOutputConfig = Some
"""
SETTINGS = {"max_new_tokens": 9, "stop_strings": [], "json_schema": None}


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_process_answers_whatever_its_libraries_print(genai: Path) -> None:
    batcher = Batcher(Process({"path": "m.gguf", "num_ctx": 50, "num_threads": 1}))
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda text: batcher.ask(said(text), SETTINGS)["text"], ["abc", "grüß", "数"] * 3))
    assert answers == ["cba", "ßürg", "数"] * 3
    with pytest.raises(Refused, match="The prompt has 60 tokens"):
        batcher.ask(said("x" * 60), SETTINGS)
    batcher.close()


def test_process_that_cannot_load_the_model_says_why(genai: Path) -> None:
    with pytest.raises(ValueError, match="no such architecture"):
        Process({"path": "bad.gguf", "num_ctx": 50, "num_threads": 1})


def test_process_that_dies_is_told_to_all_who_wait(genai: Path) -> None:
    batcher = Batcher(Process({"path": "m.gguf", "num_ctx": 50, "num_threads": 1}))
    with pytest.raises(RuntimeError, match=r"process ended \(exit code 7\)"):
        batcher.ask(said("die"), SETTINGS)
    assert not batcher.is_open


def test_process_that_was_closed_answers_no_more(genai: Path) -> None:
    process = Process({"path": "m.gguf", "num_ctx": 50, "num_threads": 1})
    assert process.step({"new": [], "cancelled": []}) == {"failed": [], "done": []}
    process.close()
    with pytest.raises(RuntimeError, match="process is gone"):
        process.step({"new": [], "cancelled": []})
