"""The ledger of a run: every paid result, on disk before it is used.

A run is a function of its settings, its data and the replies it gets. So a run is resumed by running it again from the
start: every reply that was paid for is found here and costs nothing, and the rest is asked for. No state needs to be
restored, and a resumed run cannot differ from an uninterrupted one.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from dspy_dlpo.records import Rollout, Spending, StepRecord

_SCHEMA_VERSION = 1
_APPLICATION_ID = 0x444C504F  # "DLPO"
_TABLES = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE rollouts (
    candidate TEXT, example TEXT, score REAL NOT NULL, record TEXT NOT NULL, PRIMARY KEY (candidate, example)
) WITHOUT ROWID;
CREATE TABLE replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL, spent TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE steps (step INTEGER PRIMARY KEY, record TEXT NOT NULL);
"""
_ROLLOUT = TypeAdapter(Rollout)
_STEP = TypeAdapter(StepRecord)
_SPENDING = TypeAdapter(Spending)


class Ledger:
    """One SQLite file, `ledger.sqlite` in the run's folder; in memory if there is no folder.

    Death of the process loses nothing that was written; loss of power may lose the last moments (WAL mode,
    `synchronous=NORMAL`). Used from one thread. One process at a time: the file is locked while it is open.

    Args:
        log_dir: The run's folder, made if need be; None to keep the ledger in memory.
        settings: What decides the run's course, by name, as short texts. A run is resumed only with equal settings.

    Raises:
        ValueError: If the run in the folder was made with other settings, or the file is not such a ledger or of a
            newer version. The file is left as it is.
        RuntimeError: If another process has the run open.
    """

    def __init__(self, log_dir: str | Path | None, settings: Mapping[str, str]) -> None:
        self._path = None if log_dir is None else Path(log_dir) / "ledger.sqlite"
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = sqlite3.connect(self._path or ":memory:", isolation_level=None, timeout=0.2)
        try:
            self._open(settings)
        except sqlite3.OperationalError as error:
            self.close()
            if "locked" not in str(error):
                raise
            raise RuntimeError(
                f"Another process has {self._path} open. Wait for it, or use a new `log_dir`."
            ) from error
        except sqlite3.DatabaseError as error:
            self.close()
            raise ValueError(f"{self._path} is damaged or not a ledger ({error}). Use a new `log_dir`.") from error
        except ValueError:
            self.close()
            raise

    def _open(self, settings: Mapping[str, str]) -> None:
        tables = self._file.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        (application,) = self._file.execute("PRAGMA application_id").fetchone()
        (version,) = self._file.execute("PRAGMA user_version").fetchone()
        if tables and application != _APPLICATION_ID:
            raise ValueError(f"{self._path} is not a ledger of dspy_dlpo. Use a new `log_dir`.")
        if version > _SCHEMA_VERSION:
            raise ValueError(f"{self._path} was written by a newer dspy_dlpo (schema {version}). Update the package.")
        self._file.execute("PRAGMA locking_mode=EXCLUSIVE")
        self._file.execute("PRAGMA journal_mode=WAL")
        self._file.execute("PRAGMA synchronous=NORMAL")
        if not tables:
            self._file.executescript(f"BEGIN EXCLUSIVE; {_TABLES}")
            self._file.executemany("INSERT INTO settings VALUES (?, ?)", settings.items())
            self._file.execute(f"PRAGMA application_id={_APPLICATION_ID}")
            self._file.execute(f"PRAGMA user_version={_SCHEMA_VERSION}")
            self._file.execute("COMMIT")
        before = dict(self._file.execute("SELECT name, value FROM settings"))
        other = sorted(name for name in {*before, *settings} if before.get(name) != settings.get(name))
        if other:
            raise ValueError(
                f"Run {self._path.parent if self._path else ''} was made with other settings ({', '.join(other)}). "
                "Use a new `log_dir`, or restore them."
            )

    def rollout(self, candidate: str, example: str) -> Rollout | None:
        """Return what was paid for this candidate on this example, if it was."""
        row = self._file.execute(
            "SELECT record FROM rollouts WHERE candidate = ? AND example = ?", (candidate, example)
        ).fetchone()
        return _ROLLOUT.validate_json(row[0]) if row else None

    def add_rollout(self, rollout: Rollout) -> None:
        """Keep a rollout."""
        record = _ROLLOUT.dump_json(rollout).decode()
        self._file.execute(
            "INSERT INTO rollouts VALUES (?, ?, ?, ?)", (rollout.candidate, rollout.example, rollout.score, record)
        )

    def reply(self, key: str) -> tuple[dict[str, Any], Spending] | None:
        """Return the reply of critic or proposer to the request of this key, and what it cost, if it was paid for."""
        row = self._file.execute("SELECT reply, spent FROM replies WHERE key = ?", (key,)).fetchone()
        return (json.loads(row[0]), _SPENDING.validate_json(row[1])) if row else None

    def add_reply(self, key: str, reply: Mapping[str, Any], spent: Spending) -> None:
        """Keep a reply."""
        self._file.execute(
            "INSERT INTO replies VALUES (?, ?, ?)", (key, json.dumps(reply), _SPENDING.dump_json(spent).decode())
        )

    def add_step(self, record: StepRecord) -> None:
        """Keep the record of a completed step."""
        self._file.execute(
            "INSERT OR REPLACE INTO steps VALUES (?, ?)", (record.step, _STEP.dump_json(record).decode())
        )

    def close(self) -> None:
        """Close the file and free its lock."""
        self._file.close()
