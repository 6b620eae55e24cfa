"""The ledger of a run: every paid result, on disk before it is used.

A run is a function of its settings, its data and the replies it gets. So a run is resumed by running it again from the
start: every reply that was paid for is found here and costs nothing, and the rest is asked for. No state needs to be
restored, and a resumed run cannot differ from an uninterrupted one.

What failed because a model could not be reached is tried again on resume, unless a completed step has built on the
failure: with that step it is settled, for the steps after it would not be the same without it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from dspy_dlpo.core.records import Rollout, Spending, StepRecord
from dspy_dlpo.policies import State
from dspy_dlpo.runtime.fingerprint import HASH

LEDGER = "ledger.sqlite"
"""Name of the file in the run's folder."""

_SCHEMA_VERSION = 5
_APPLICATION_ID = 0x444C504F  # "DLPO"
_TABLES = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE rollouts (
    candidate TEXT, example TEXT, repeat INTEGER, score REAL NOT NULL, record TEXT NOT NULL, settled INTEGER NOT NULL,
    PRIMARY KEY (candidate, example, repeat)
) WITHOUT ROWID;
CREATE TABLE replies (
    key TEXT PRIMARY KEY, reply TEXT NOT NULL, spent TEXT NOT NULL, settled INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX unsettled_rollouts ON rollouts (settled) WHERE settled = 0;
CREATE INDEX unsettled_replies ON replies (settled) WHERE settled = 0;
CREATE TABLE notes (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE steps (step INTEGER PRIMARY KEY, record TEXT NOT NULL, states TEXT NOT NULL);
"""
_FORGOTTEN = "forgotten"
_ROLLOUT = TypeAdapter(Rollout)
_STEP = TypeAdapter(StepRecord)
_SPENDING = TypeAdapter(Spending)


class Ledger:
    """One SQLite file, `ledger.sqlite` in the run's folder; in memory if there is no folder.

    Death of the process loses nothing that was written; loss of power may lose the last moments (WAL mode,
    `synchronous=NORMAL`). Used by one thread at a time. One process at a time: the file is locked while it is open.

    Args:
        log_dir: The run's folder, made if need be; None to keep the ledger in memory.
        settings: What decides the run's course, by name, as short texts. A run is resumed only with equal settings.

    Attributes:
        forgotten: LM calls, tokens and dollars of what failed in earlier sessions and is tried again.

    Raises:
        ValueError: If the run in the folder was made with other settings, or the file is not such a ledger or of
            another version. The file is left as it is. Damage behind its first page may only be noticed when that is
            read, by this class or one of its methods.
        OSError: If the file cannot be opened.
        RuntimeError: If another process has the run open.
    """

    def __init__(self, log_dir: str | Path | None, settings: Mapping[str, str]) -> None:
        self._path = None if log_dir is None else Path(log_dir) / LEDGER
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            refuse_what_is_not_ours(self._path)
        self._file = sqlite3.connect(
            self._path or ":memory:", isolation_level=None, timeout=0.2, check_same_thread=False
        )
        try:
            self._open(settings)
        except sqlite3.OperationalError as error:
            self.close()
            if "locked" not in str(error):
                raise OSError(f"{self._path} cannot be opened ({error}).") from error
            raise RuntimeError(
                f"Another process has {self._path} open. Wait for it, or use a new `log_dir`."
            ) from error
        except sqlite3.DatabaseError as error:
            self.close()
            raise damaged(self._path, error) from error
        except ValueError:
            self.close()
            raise

    def _open(self, settings: Mapping[str, str]) -> None:
        tables = self._file.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        self._file.execute("PRAGMA locking_mode=EXCLUSIVE")
        if not tables:  # Before WAL, so that the head of the file says from the beginning whose it is.
            self._file.executescript(f"BEGIN EXCLUSIVE; {_TABLES}")
            self._file.executemany("INSERT INTO settings VALUES (?, ?)", settings.items())
            self._file.execute(f"PRAGMA application_id={_APPLICATION_ID}")
            self._file.execute(f"PRAGMA user_version={_SCHEMA_VERSION}")
            self._file.execute("COMMIT")
        self._file.execute("PRAGMA journal_mode=WAL")
        self._file.execute("PRAGMA synchronous=NORMAL")
        before = dict(self._file.execute("SELECT name, value FROM settings"))
        if other := [
            name if HASH in old + new else f"{name}: {old} then, {new} now"
            for name in sorted({*before, *settings})
            if (old := before.get(name, "none")) != (new := settings.get(name, "none"))
        ]:
            raise ValueError(
                f"Run {self._path.parent if self._path else ''} was made with other settings: {'; '.join(other)}. "
                "Use a new `log_dir`, or restore them."
            )
        self.forgotten = self._forget_failures()

    def _forget_failures(self) -> Spending:
        """Drop what failed and was not settled, to be tried again; return what all that was dropped so far had cost."""
        note = self._read("SELECT value FROM notes WHERE name = ?", _FORGOTTEN)
        rollouts = self._file.execute("SELECT record FROM rollouts WHERE settled = 0").fetchall()
        replies = self._file.execute("SELECT spent FROM replies WHERE settled = 0").fetchall()
        spent = [_ROLLOUT.validate_json(record).spent for (record,) in rollouts]
        spent += [_SPENDING.validate_json(record) for (record,) in replies]
        forgotten = reduce(add, spent, _SPENDING.validate_json(note[0]) if note else Spending())
        forgotten = replace(forgotten, metric_calls=0, seconds=0.0)
        if spent:
            self._file.execute("BEGIN")
            self._file.execute("DELETE FROM rollouts WHERE settled = 0")
            self._file.execute("DELETE FROM replies WHERE settled = 0")
            self._file.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (_FORGOTTEN, _json(_SPENDING, forgotten)))
            self._file.execute("COMMIT")
        return forgotten

    def rollout(self, candidate: str, example: str, repeat: int = 0) -> Rollout | None:
        """Return what was paid for this candidate on this example, if it was."""
        where = "candidate = ? AND example = ? AND repeat = ?"
        row = self._read(f"SELECT record FROM rollouts WHERE {where}", candidate, example, repeat)
        return _ROLLOUT.validate_json(row[0]) if row else None

    def add_rollout(self, rollout: Rollout) -> None:
        """Keep a rollout; a lost one only counts on resume once it is settled."""
        key, record = (rollout.candidate, rollout.example, rollout.repeat), _json(_ROLLOUT, rollout)
        self._write("INSERT INTO rollouts VALUES (?, ?, ?, ?, ?, ?)", *key, rollout.score, record, not rollout.lost)

    def reply(self, key: str) -> tuple[dict[str, Any], Spending] | None:
        """Return the reply of critic or proposer to the request of this key, and what it cost, if it was paid for."""
        row = self._read("SELECT reply, spent FROM replies WHERE key = ?", key)
        return (json.loads(row[0]), _SPENDING.validate_json(row[1])) if row else None

    def add_reply(self, key: str, reply: Mapping[str, Any], spent: Spending, *, failed: bool = False) -> None:
        """Keep a reply; that of a failed call only counts on resume once it is settled."""
        values = (key, json.dumps(reply), _json(_SPENDING, spent), not failed)
        self._write("INSERT INTO replies VALUES (?, ?, ?, ?)", *values)

    def add_step(self, record: StepRecord, states: Sequence[State]) -> None:
        """Keep the record of a completed step, and the states of the policies after it; settle what failed in it."""
        values = (record.step, _json(_STEP, record), json.dumps(states))
        self._write("INSERT OR REPLACE INTO steps VALUES (?, ?, ?)", *values)
        self.settle()

    def forget_steps(self, start: int) -> None:
        """Drop the records of steps from an index on: those of an earlier run with more steps."""
        self._write("DELETE FROM steps WHERE step >= ?", start)

    def add_note(self, name: str, value: str) -> None:
        """Keep a text for those who look at the run: what it was made with, how it ended."""
        self._write("INSERT OR REPLACE INTO notes VALUES (?, ?)", name, value)

    def unsettle(self, candidate: str) -> None:
        """Let the rollouts of a candidate be tried again on resume."""
        self._write("UPDATE rollouts SET settled = 0 WHERE candidate = ?", candidate)

    def settle(self) -> None:
        """Let the failures so far stand: what follows builds on them."""
        for table in ("rollouts", "replies"):
            self._write(f"UPDATE {table} SET settled = 1 WHERE settled = 0")

    def _read(self, statement: str, *values: Any) -> Any:
        """Return the first row, None if there is none."""
        try:
            return self._file.execute(statement, values).fetchone()
        except sqlite3.DatabaseError as error:
            raise damaged(self._path, error) from error

    def _write(self, statement: str, *values: Any) -> None:
        try:
            self._file.execute(statement, values)
        except sqlite3.DatabaseError as error:
            if not isinstance(error, sqlite3.OperationalError):
                raise damaged(self._path, error) from error
            raise OSError(
                f"{self._path} cannot be written ({error}). What it holds is safe: once there is room on the disk, the "
                "same call goes on from there."
            ) from error

    def close(self) -> None:
        """Close the file and free its lock."""
        self._file.close()


def refuse_what_is_not_ours(path: Path) -> None:
    """Raise ValueError unless a file is empty, absent, or a ledger of this version.

    It looks at the head of the file without a lock or a file beside it, so that what is not ours stays as it is.
    """
    if not path.exists() or path.stat().st_size == 0:
        return
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?immutable=1", uri=True)) as file:
        try:
            (application,) = file.execute("PRAGMA application_id").fetchone()
            (version,) = file.execute("PRAGMA user_version").fetchone()
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorname == "SQLITE_CORRUPT":  # Perhaps only unfinished: opening it tells, and mends.
                return
            raise damaged(path, error) from error
    if application != _APPLICATION_ID:
        raise ValueError(f"{path} is not a ledger of dspy_dlpo. Use a new `log_dir`.")
    if version != _SCHEMA_VERSION:
        age = "a newer" if version > _SCHEMA_VERSION else "an older"
        raise ValueError(f"{path} is of {age} dspy_dlpo (schema {version}). Use that, or a new `log_dir`.")


def _json(kind: TypeAdapter[Any], value: Any) -> str:
    return kind.dump_json(value).decode()


def damaged(path: Path | None, error: sqlite3.DatabaseError) -> ValueError:
    """Return the error for a file that SQLite cannot read."""
    return ValueError(f"{path} is damaged or not a ledger ({error}). Use a new `log_dir`.")
