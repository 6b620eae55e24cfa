"""What the engine costs besides the calls: waiting, CPU, and large data.

    python -m examples.benchmarks.engine

The language model is a script that knows a small world: each code means a word, and the program is right if its
instruction says which. It answers after a fixed latency, or at once. Four measurements:

* wall time of a whole compilation over LM calls x latency / threads, what it would be if no thread ever waited;
* CPU time per metric call of the forward pass, against `dspy.Evaluate` with the same program, metric and threads;
* time to open a ledger of many evaluations;
* time until a run on a large trainset makes its first call, against the time in which the examples are read once.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import dspy
from dspy.lm15 import AuthError

from dspy_dlpo.benchmarks.simulation.scripted import fields, play, simulated_lm
from dspy_dlpo.core.records import Call, Candidate, Rollout, Spending
from dspy_dlpo.core.settings import Tuning
from dspy_dlpo.optimizer.teleprompter import DLPOOptimizer
from dspy_dlpo.runtime.budget import Budget
from dspy_dlpo.runtime.data import prepare
from dspy_dlpo.runtime.forward import Forward
from dspy_dlpo.runtime.ledger import Ledger
from dspy_dlpo.runtime.metric import Metric
from dspy_dlpo.runtime.program import Student

NUM_CODES = 60
INSTRUCTION = "Say what the code means."


def _program(system: str, user: str) -> str:
    code = re.search(r"code (K\d+)", user)
    meaning = code and re.search(rf"Code {code.group(1)} means (\w+)\.", system)
    return fields(meaning=meaning.group(1) if meaning else "unknown")


def _critic(system: str, user: str) -> str:
    return fields(requirements="\n".join(dict.fromkeys(re.findall(r"Code K\d+ means w\d+\.", user))))


script = play(_program, _critic)
"""Plays program, critic and proposer."""


def program() -> dspy.Module:
    """Return the program."""
    return dspy.Predict(dspy.Signature("question -> meaning", INSTRUCTION))


def examples(number: int) -> list[dspy.Example]:
    """Return so many questions, about one code after another."""
    codes = (index % NUM_CODES for index in range(number))
    return [
        dspy.Example(question=f"{index}: What does code K{code} mean?", meaning=f"w{code}").with_inputs("question")
        for index, code in enumerate(codes)
    ]


def score(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> float:
    """Return 1.0 if the meaning is right."""
    return float(prediction.meaning == example.meaning)


def metric(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> dspy.Prediction:
    """Score, and say what was missing."""
    right, code = score(example, prediction), str(example.question).split("code ")[1].split()[0]
    return dspy.Prediction(score=right, feedback="" if right else f"Code {code} means {example.meaning}.")


def wall_time(latency: float, num_threads: int, batch_size: int, max_metric_calls: int) -> dict[str, float]:
    """Compile once; return seconds, LM calls, metric calls, and seconds over LM calls x latency / threads."""
    lm, trainset = simulated_lm(script, latency), examples(400)
    optimizer = DLPOOptimizer(
        metric=metric,
        max_metric_calls=max_metric_calls,
        tuning=Tuning(batch_size=batch_size, max_trial_examples=2 * batch_size),
        num_threads=num_threads,
        verbose=False,
    )
    with dspy.context(lm=lm):
        began = time.perf_counter()
        optimized = optimizer.compile(program(), trainset=trainset[:300], valset=trainset[300:])
        seconds = time.perf_counter() - began
    calls = len(lm.engine.log)
    return {
        "seconds": seconds,
        "LM calls": calls,
        "metric calls": optimized.detailed_results.total_metric_calls,
        "ratio": seconds / (calls * latency / num_threads),
    }


def cpu_per_call(num_examples: int, num_threads: int, repeats: int = 15) -> dict[str, float]:
    """Return CPU milliseconds per metric call of `dspy.Evaluate` and of our forward pass, medians of alternate runs."""
    devset = examples(num_examples)
    data = prepare(devset, devset, 0)
    student = program()
    evaluate = dspy.Evaluate(devset=devset, metric=score, num_threads=num_threads)
    spent: dict[str, list[float]] = {"dspy.Evaluate": [], "train": [], "validation": []}
    with dspy.context(lm=simulated_lm(script)), tempfile.TemporaryDirectory() as folder:
        for repeat in range(repeats):
            candidate = Candidate({"self": f"{INSTRUCTION} {repeat}"})
            spent["dspy.Evaluate"].append(_cpu(partial(evaluate, student)))
            with closing(Ledger(Path(folder, str(repeat)), {})) as ledger:
                forward = Forward(
                    Student(student),
                    Metric(score, (0.0, 1.0)),
                    data,
                    ledger=ledger,
                    budget=Budget(None),
                    num_threads=num_threads,
                    failure_score=0.0,
                    timeout=600.0,
                )
                for label, names in (("train", data.trainset), ("validation", data.valset)):
                    pairs = [(candidate, name) for name in names]
                    spent[label].append(_cpu(partial(forward.pay, pairs)))
    return {label: statistics.median(each) / num_examples * 1e3 for label, each in spent.items()}


def _cpu(function: Callable[[], object]) -> float:
    began = time.process_time()
    function()
    return time.process_time() - began


def ledger_opening(num_rollouts: int) -> dict[str, float]:
    """Return the seconds to open a ledger of so many evaluations and look one up, and its size in megabytes."""
    call = Call("self", {"question": "What does code K7 mean?"}, {"meaning": "w7"})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "ledger.sqlite")
        with closing(Ledger(folder, {})) as ledger:
            ledger.add_rollout(Rollout("example", "train:0", 0.5, calls=(call,), spent=Spending(1, 1, 500, 20, 0.2)))
        with closing(sqlite3.connect(path)) as file, file:
            (record,) = file.execute("SELECT record FROM rollouts").fetchone()
            rows = (
                (f"{index // 1000:016x}", f"train:{index % 1000}", 0, 0.5, record, 1) for index in range(num_rollouts)
            )
            file.executemany("INSERT INTO rollouts VALUES (?, ?, ?, ?, ?, ?)", rows)
        began = time.perf_counter()
        with closing(Ledger(folder, {})) as ledger:
            ledger.rollout(f"{0:016x}", "train:7")
            seconds = time.perf_counter() - began
        return {"seconds": seconds, "MB": path.stat().st_size / 1e6}


def _refuse(system: str, user: str) -> str:
    """End the run at its first call."""
    raise AuthError("the first call")


def large_trainset(num_examples: int) -> dict[str, float]:
    """Return the seconds to read a trainset from a file of JSON lines, and from `compile` to the first call."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trainset.jsonl")
        with path.open("w") as file:
            file.writelines(json.dumps(example.toDict()) + "\n" for example in examples(num_examples))
        began = time.perf_counter()
        with path.open() as file:
            trainset = [dspy.Example(**json.loads(line)).with_inputs("question") for line in file]
        seconds = {"reading": time.perf_counter() - began}
        for label, log_dir in (("start in memory", None), ("start with log_dir", folder)):
            optimizer = DLPOOptimizer(metric=score, num_steps=1, log_dir=log_dir, num_threads=1, verbose=False)
            began = time.perf_counter()
            with dspy.context(lm=simulated_lm(_refuse)), suppress(dspy.LMAuthError):
                optimizer.compile(program(), trainset=trainset)
            seconds[label] = time.perf_counter() - began
    return seconds


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", type=float, default=0.2, help="seconds")
    parser.add_argument("--num-threads", type=int, default=64)
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[8, 16, 32, 64])
    parser.add_argument("--max-metric-calls", type=int, default=1000)
    parser.add_argument("--num-examples", type=int, default=200, help="for the CPU time")
    parser.add_argument("--size", type=int, default=1_000_000, help="evaluations and examples of the large data")
    arguments = parser.parse_args()
    logging.getLogger("dspy").setLevel(logging.WARNING)
    print(f"A whole run at {arguments.latency} s a call, {arguments.num_threads} threads, by batch size:")
    for batch_size in arguments.batch_sizes:
        figures = wall_time(arguments.latency, arguments.num_threads, batch_size, arguments.max_metric_calls)
        print(f"  {batch_size}: {_line(figures)}")
    for num_threads in (1, 8, arguments.num_threads):
        figures = cpu_per_call(arguments.num_examples, num_threads)
        base = figures["dspy.Evaluate"]
        ratios = ", ".join(f"{label} {value:.3f} ({value / base:.2f})" for label, value in figures.items())
        print(f"CPU ms per metric call (over dspy.Evaluate's), {num_threads} threads: {ratios}")
    print(f"Opening a ledger of {arguments.size:,} evaluations: {_line(ledger_opening(arguments.size))}")
    print(f"Seconds with {arguments.size:,} train examples: {_line(large_trainset(arguments.size))}")


def _line(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{label} {value:.4g}" for label, value in figures.items())


if __name__ == "__main__":
    main()
