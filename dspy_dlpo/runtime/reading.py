"""Reading a run's ledger without going on with it: also while it cannot be written, as on read-only storage."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from dspy_dlpo.core.records import Spending
from dspy_dlpo.runtime.ledger import LEDGER, damaged, paid_in, reading, refuse_what_is_not_ours


@dataclass(frozen=True)
class KeptRun:
    """What the ledger of a run holds for those who look at it.

    Attributes:
        notes: What the run was made with and how it ended, by name, as JSON.
        steps: The records of its steps, as JSON.
        spent: What was paid for, steps that did not end included.
        scores: Candidate, example and score of each rollout that was not lost.
    """

    notes: Mapping[str, str] = field(default_factory=dict)
    steps: Sequence[str] = ()
    spent: Spending = field(default_factory=Spending)
    scores: Sequence[tuple[str, str, float]] = ()


def read_run(log_dir: str | Path) -> KeptRun:
    """Return what the ledger of a run holds.

    Raises:
        FileNotFoundError: If there is no run.
        ValueError: If the file is no ledger, of another version, or damaged; or if the run had not begun.
        OSError: If the file cannot be read.
        RuntimeError: If a process has the run open.
    """
    path = Path(log_dir) / LEDGER
    if not path.is_file():
        raise FileNotFoundError(f"No run in {log_dir}: it has no {LEDGER}. Give the `log_dir` of a run.")
    with path.open("rb"):
        """Tells now whether it may be read, in the words of the operating system."""
    refuse_what_is_not_ours(path)
    try:
        kept = _read(path)
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise RuntimeError(f"Another process has {path} open: the run is going on ({error}).") from error
        kept = _read_copy(path)
    if "run" not in kept.notes:
        raise ValueError(f"The run in {log_dir} ended before it began. Make it again.")
    return kept


def _read(path: Path) -> KeptRun:
    with reading(path), closing(sqlite3.connect(path, timeout=0.2)) as file:
        tables = {name for (name,) in file.execute("SELECT name FROM sqlite_master")}
        if not {"notes", "steps"} <= tables:  # It died while it made the file.
            return KeptRun()
        notes = {str(name): str(value) for name, value in file.execute("SELECT name, value FROM notes")}
        steps = [str(record) for (record,) in file.execute("SELECT record FROM steps ORDER BY step")]
        rows = file.execute("SELECT candidate, example, score FROM rollouts WHERE NOT json_extract(record, '$.lost')")
        scores = [(str(candidate), str(example), float(score)) for candidate, example, score in rows]
        return KeptRun(notes, steps, paid_in(file), scores)


def _read_copy(path: Path) -> KeptRun:
    """Read a copy: SQLite opens no file of this kind where it cannot write beside it."""
    with tempfile.TemporaryDirectory() as folder:
        for name in (path.name, f"{path.name}-wal"):
            if path.with_name(name).is_file():
                shutil.copyfile(path.with_name(name), Path(folder, name))
        try:
            return _read(Path(folder, path.name))
        except sqlite3.OperationalError as error:
            raise damaged(path, error) from error
