"""A run that is killed goes on where it stopped. `DLPO_KILLS=50 pytest tests/test_resume.py` kills fifty."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_dlpo import DLPOOptimizer
from tests.scripted import Oracle, examples, metric, scripted_lm, world

NUM_THREADS = 4


def run(log_dir: Path, log: Path) -> dict[str, Any]:
    """Compile; the model writes each request to a log of its own before it answers."""
    file = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    def answer(system: str, user: str) -> str:
        os.write(file, sha256(f"{system}\n{user}".encode()).hexdigest().encode() + b"\n")
        time.sleep(0.002)
        return world()(system, user)

    optimizer = DLPOOptimizer(
        metric=metric, policies="paper", num_steps=3, num_threads=NUM_THREADS, log_dir=log_dir, verbose=False
    )
    with dspy.context(lm=scripted_lm(answer)):
        optimized = optimizer.compile(dspy.Predict(Oracle), trainset=examples(40), valset=examples(10, 100))
    os.close(file)
    result = optimized.detailed_results.to_dict()
    del result["run"]["sessions"]  # When it was made.
    for record in (result, *result["history"]):
        del record["spent"]["seconds"]
    del result["run"]["settings"]["log_dir"]
    return {**result, "log_dir": None}


def asked(log: Path) -> list[str]:
    return log.read_text().split() if log.exists() else []


def rows(log_dir: Path, copy: Path, query: str) -> list[Any]:
    """Query a copy of the ledger, so that the killed run's own stays as it is."""
    if not (log_dir / "ledger.sqlite").exists():
        return []
    shutil.copytree(log_dir, copy)
    file = sqlite3.connect(copy / "ledger.sqlite")
    try:
        return file.execute(query).fetchall() if file.execute("SELECT 1 FROM sqlite_master").fetchone() else []
    finally:
        file.close()


def kill(log_dir: Path, log: Path, requests: int, seconds: float) -> None:
    """Run in a process of its own, forked so that it need not import anything; kill it so long after a request."""
    process = os.fork()
    if not process:
        try:
            run(log_dir, log)
        finally:
            os._exit(0)
    while len(asked(log)) < requests:
        time.sleep(0.001)
    time.sleep(seconds)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks, which Windows cannot")
def test_run_killed_at_any_moment_asks_for_nothing_finished_again_and_ends_as_if_never_killed(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", tmp_path / "whole.log")
    states = "SELECT step, state FROM steps ORDER BY step"
    kept = rows(tmp_path / "whole", tmp_path / "whole copy", states)
    every = asked(tmp_path / "whole.log")
    assert len(set(every)) == len(every)
    rng, cut_short = random.Random(0), False
    for number in range(int(os.environ.get("DLPO_KILLS", "4"))):
        log_dir, first, second = (tmp_path / f"{number}{suffix}" for suffix in ("", ".first", ".second"))
        kill(log_dir, first, rng.randrange(len(every)), rng.uniform(0, 0.01))
        paid = rows(
            log_dir,
            tmp_path / f"{number} killed",
            "SELECT example FROM rollouts UNION ALL SELECT key FROM replies",
        )
        assert run(log_dir, second) == whole
        assert rows(log_dir, tmp_path / f"{number} resumed", states) == kept
        before, after = asked(first), asked(second)
        in_flight = {*before} & {*after}
        assert sorted({*before} | {*after}) == sorted(every)
        assert len(in_flight) == len(before) - len(paid) <= NUM_THREADS
        cut_short |= 0 < len(paid) < len(every)
    assert cut_short
