"""How fast, how good and how repeatable is the local engine, beside llama-cpp-python with the same file?

Each engine runs in a process of its own, and they take turns, so that what else the machine does falls on both. Speed:
answers a minute for several numbers in flight, and the seconds of processor that an answer takes, which other work
disturbs less. Quality: right answers of as many prompts of three kinds. Repeatability: how many answers at temperature
0 are the same, word for word, with other numbers in flight.

    python -m examples.benchmarks.local_engine --llama .llama/bin/python

`--llama` is a Python that has llama-cpp-python (`pip install llama-cpp-python`: a compiler and some minutes); without
it only our engine is measured. The prompts are made here: the quickstart's orders, and reasoning-gym's family
relationships (one word) and word problems (with written steps).
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import repeat
from pathlib import Path
from typing import IO, Any

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Kind:
    """A kind of prompts.

    Attributes:
        max_tokens: Most tokens of an answer.
        prompts: Each prompt, with what an answer must hold.
        is_right: Whether an answer is right, given what it must hold.
    """

    max_tokens: int
    prompts: list[tuple[Messages, str]]
    is_right: Callable[[str, str], bool]


@dataclass(frozen=True)
class Row:
    """One measurement."""

    engine: str
    kind: str
    in_flight: int
    answers_a_minute: float
    cpu_seconds: float
    right: int
    num_prompts: int


def kinds(size: int) -> dict[str, Kind]:
    """Return the kinds of prompts, `size` of each."""
    import reasoning_gym

    from dspy_dlpo.local.quickstart import FORM, NOTES, load_orders

    def made(name: str, system: str) -> list[tuple[Messages, str]]:
        rows = reasoning_gym.create_dataset(name, size=size, seed=0)
        return [(_chat(system, row["question"]), str(row["answer"])) for row in rows]

    rules = " ".join(["Write the order line for the warehouse.", *NOTES.values(), FORM])
    orders = [(_chat(rules, order.message), str(order.line)) for part in load_orders() for order in part]
    return {
        "orders": Kind(48, orders[:size], lambda text, line: set(line.split("; ")) <= set(re.split(r"\s*;\s*", text))),
        "relations": Kind(16, made("family_relationships", "Answer the question."), _says),
        "problems": Kind(300, made("gsm_symbolic", "Solve the problem step by step."), _ends_with),
    }


def _chat(system: str, user: str) -> Messages:
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def _says(text: str, word: str) -> bool:
    return text.strip().strip(".").lower() == word.lower()


def _ends_with(text: str, number: str) -> bool:
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    return bool(numbers) and float(numbers[-1].replace(",", "")) == float(number)


class Worker:
    """An engine in a process of its own.

    Args:
        name: `openvino` or `llama`.
        python: The interpreter that has it.
        path: The GGUF file.

    Attributes:
        load_seconds: How long it took to load the model.
        memory: Most bytes in memory after a job.
    """

    def __init__(self, name: str, python: str, path: Path) -> None:
        self.name = name
        command = [python, str(Path(__file__)), "--worker", name, "--file", str(path)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.load_seconds = float(self._read()["load_seconds"])
        self.memory = used(self._process.pid)[1]

    def ask(self, prompts: Sequence[Messages], max_tokens: int, in_flight: int) -> dict[str, Any]:
        """Return `texts`, `seconds` and `cpu_seconds`."""
        job = {"prompts": list(prompts), "max_tokens": max_tokens, "in_flight": in_flight}
        assert self._process.stdin is not None
        before, _ = used(self._process.pid)
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        done = self._read()
        after, memory = used(self._process.pid)
        self.memory = max(self.memory, memory)
        return {**done, "cpu_seconds": after - before}

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"The process of {self.name} ended; its error is above.")
        return dict(json.loads(line))


def used(pid: int) -> tuple[float, int]:
    """Return the seconds of processor that a process and those it started have used, and their bytes of memory."""
    import psutil  # The Python of the other engine need not have it.

    own = psutil.Process(pid)
    found = [(each.cpu_times(), each.memory_info().rss) for each in (own, *own.children(recursive=True))]
    return sum(times.user + times.system for times, _ in found), sum(rss for _, rss in found)


def serve(answer: Callable[[Messages, int], str], jobs: IO[str], results: IO[str]) -> None:
    """Answer jobs, one a line, until there are no more."""
    for line in jobs:
        job = json.loads(line)
        begun = time.perf_counter()
        with ThreadPoolExecutor(job["in_flight"]) as pool:
            texts = list(pool.map(answer, job["prompts"], repeat(job["max_tokens"])))
        results.write(json.dumps({"texts": texts, "seconds": time.perf_counter() - begun}) + "\n")
        results.flush()


def _openvino(path: Path) -> Callable[[Messages, int], str]:
    from dspy.lm15 import Config, Message, Request

    from dspy_dlpo.local.engine import LocalEngine

    engine = LocalEngine(path)
    engine.load()

    def answer(messages: Messages, max_tokens: int) -> str:
        system, user = (message["content"] for message in messages)
        config = Config(temperature=0.0, max_tokens=max_tokens)
        request = Request(model="local", system=system, messages=(Message.user(user),), config=config)
        return engine.complete(request).message.text or ""

    return answer


def _llama(path: Path) -> Callable[[Messages, int], str]:
    import llama_cpp

    llama = llama_cpp.Llama(str(path), n_ctx=4096, verbose=False)

    def answer(messages: Messages, max_tokens: int) -> str:
        reply = llama.create_chat_completion(messages, temperature=0.0, max_tokens=max_tokens)
        return str(reply["choices"][0]["message"]["content"])

    return answer


def measure(
    workers: Sequence[Any], kinds: dict[str, Kind], in_flight: Sequence[int], size_alone: int | None = None
) -> Iterator[tuple[Row, list[str]]]:
    """Yield each measurement with its answers. llama-cpp-python answers one prompt at a time, so it is asked so.

    With one in flight only the first `size_alone` prompts are asked.
    """
    for name, kind in kinds.items():
        for number in in_flight:
            for worker in workers:
                if worker.name == "llama" and number != min(in_flight):
                    continue
                prompts = kind.prompts[:size_alone] if number == 1 else kind.prompts
                done = worker.ask([messages for messages, _ in prompts], kind.max_tokens, number)
                size = len(prompts)
                right = sum(kind.is_right(text, held) for text, (_, held) in zip(done["texts"], prompts, strict=True))
                speed = 60 * size / done["seconds"]
                yield Row(worker.name, name, number, speed, done["cpu_seconds"] / size, right, size), done["texts"]


def agreement(answers: dict[tuple[str, str, int], list[str]]) -> list[str]:
    """Return a line for each kind and two numbers in flight of one engine: how many answers are the same."""
    lines = []
    for (engine, kind, few), texts in answers.items():
        for (other, same_kind, many), others in answers.items():
            if (engine, kind) == (other, same_kind) and few < many:
                same = [one == two for one, two in zip(texts, others, strict=False)]
                lines.append(
                    f"{engine:9} {kind:10} {few:2} and {many:2} in flight: {sum(same)} of {len(same)} the same"
                )
    return lines


def show(row: Row) -> str:
    """Return a measurement as a line of the table."""
    return (
        f"{row.engine:9} {row.kind:10} {row.in_flight:9} {row.answers_a_minute:16.1f} {row.cpu_seconds:13.2f} "
        f"{row.right:7} of {row.num_prompts}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama", help="a Python that has llama-cpp-python")
    parser.add_argument("--size", type=int, default=100, help="prompts of each kind (default: 100)")
    parser.add_argument("--size-alone", type=int, help="prompts of each kind where one is in flight (default: size)")
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 4, 8, 16, 24])
    parser.add_argument("--kinds", nargs="+", default=["orders", "relations", "problems"])
    parser.add_argument("--json", type=Path, help="a file for the measurements")
    parser.add_argument("--worker", choices=["openvino", "llama"], help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help="the GGUF file (default: the built-in model's)")
    chosen = parser.parse_args(arguments)
    if chosen.worker:
        begun = time.perf_counter()
        answer = {"openvino": _openvino, "llama": _llama}[chosen.worker](chosen.file)
        print(json.dumps({"load_seconds": time.perf_counter() - begun}), flush=True)
        serve(answer, sys.stdin, sys.stdout)
        return
    from dspy_dlpo.local.quickstart import MODEL
    from dspy_dlpo.local.weights import weights_path

    path = chosen.file or weights_path(MODEL)
    pythons = {"openvino": sys.executable, **({"llama": chosen.llama} if chosen.llama else {})}
    workers = [Worker(name, python, path) for name, python in pythons.items()]
    asked = {name: kind for name, kind in kinds(chosen.size).items() if name in chosen.kinds}
    rows: list[Row] = []
    answers: dict[tuple[str, str, int], list[str]] = {}
    print("engine    kind       in flight answers a minute CPU s/answer   right")
    for row, texts in measure(workers, asked, chosen.in_flight, chosen.size_alone):
        print(show(row), flush=True)
        rows.append(row)
        answers[row.engine, row.kind, row.in_flight] = texts
    print("\n".join(["", *agreement(answers), ""]))
    for worker in workers:
        print(f"{worker.name:9} load {worker.load_seconds:.1f} s, memory {worker.memory / 2**30:.1f} GiB")
        worker.close()
    if chosen.json:
        chosen.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
