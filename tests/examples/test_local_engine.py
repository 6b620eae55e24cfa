"""The benchmark of the local engine, with stand-ins for the engines."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from typing import Any

import pytest

from examples.benchmarks import local_engine as bench


class Oracle:
    """Answers as told in place of an engine; with more than one in flight, the first answer is another."""

    load_seconds = 1.0

    def __init__(self, name: str, answers: dict[str, str]) -> None:
        self.name = name
        self.answers = answers
        self.asked: list[tuple[int, int]] = []

    def ask(self, prompts: list[bench.Messages], max_tokens: int, in_flight: int) -> dict[str, Any]:
        self.asked.append((max_tokens, in_flight))
        texts = [self.answers[messages[-1]["content"]] for messages in prompts]
        if in_flight > 1:
            texts[0] = "none"
        return {"texts": texts, "seconds": 30.0, "cpu_seconds": 12.0}


def test_right_answers_of_each_kind_are_counted_and_wrong_ones_are_not() -> None:
    kinds = bench.kinds(6)
    assert [*kinds] == ["orders", "relations", "problems"]
    for kind in kinds.values():
        assert len({messages[-1]["content"] for messages, _ in kind.prompts}) == 6
        for _, held in kind.prompts:
            assert kind.is_right(held, held)
            assert not kind.is_right("I do not know.", held)
    assert kinds["problems"].is_right("5 + 5 = 10\nSo the answer is **1,234**.", "1234")
    assert not kinds["problems"].is_right("1234 or rather 1235", "1234")


def test_engines_take_turns_and_the_one_that_answers_one_prompt_at_a_time_is_asked_so() -> None:
    kinds = {"relations": bench.kinds(4)["relations"]}
    answers = {messages[-1]["content"]: held for messages, held in kinds["relations"].prompts}
    ours, theirs = Oracle("openvino", answers), Oracle("llama", answers)
    measured = list(bench.measure([ours, theirs], kinds, [1, 8]))
    assert [(row.engine, row.in_flight, row.right) for row, _ in measured] == [
        ("openvino", 1, 4),
        ("llama", 1, 4),
        ("openvino", 8, 3),
    ]
    assert (ours.asked, theirs.asked) == ([(16, 1), (16, 8)], [(16, 1)])
    assert measured[0][0].answers_a_minute == 8
    assert measured[0][0].cpu_seconds == 3
    found = bench.agreement({(row.engine, row.kind, row.in_flight): texts for row, texts in measured})
    assert [" ".join(line.split()) for line in found] == ["openvino relations 1 and 8 in flight: 3 of 4 the same"]
    assert bench.show(measured[0][0]).split() == ["openvino", "relations", "1", "8.0", "3.00", "4", "of", "4"]


@pytest.mark.parametrize("in_flight", [1, 3])
def test_worker_answers_every_prompt_of_every_job_in_order(in_flight: int) -> None:
    jobs = [{"prompts": [[{"content": str(n)}] for n in range(5)], "max_tokens": 7, "in_flight": in_flight}] * 2
    results = io.StringIO()
    bench.serve(
        lambda messages, most: f"{messages[0]['content']}:{most}",
        io.StringIO("".join(json.dumps(job) + "\n" for job in jobs)),
        results,
    )
    done = [json.loads(line) for line in results.getvalue().splitlines()]
    assert [each["texts"] for each in done] == [[f"{n}:7" for n in range(5)]] * 2
    assert all(each["seconds"] > 0 for each in done)


def test_memory_and_seconds_of_processor_count_the_processes_that_an_engine_started() -> None:
    child = "x = bytearray(2**26); sum(range(3_000_000)); print(1, flush=True); input()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        seconds, memory = bench.used(process.pid)
        process.communicate(b"\n")
    assert seconds > 0.01
    assert memory > 2**26
