"""The ledger of a run: every paid result, on disk before it is used.

A run is a function of its settings, its data and the replies it gets. So a run is resumed by running it again from the
start: every reply that was paid for is found here and costs nothing, and the rest is asked for. No state needs to be
restored, and a resumed run cannot differ from an uninterrupted one.

What failed because a model could not be reached is tried again on resume, unless a completed step has built on the
failure: with that step it is settled, for the steps after it would not be the same without it.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import PydanticSerializationError

from dspy_dlpo.core.plain import jsonable
from dspy_dlpo.core.records import Rollout, Spending
from dspy_dlpo.core.steps import StepRecord
from dspy_dlpo.policies import State
from dspy_dlpo.runtime.fingerprint import CODE, HASH
from dspy_dlpo.runtime.wal import is_whole

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
CREATE TABLE steps (step INTEGER PRIMARY KEY, record TEXT NOT NULL, state TEXT NOT NULL);
"""
_FORGOTTEN = "forgotten"
_ROLLOUT = TypeAdapter(Rollout)
_STEP = TypeAdapter(StepRecord)
_SPENDING = TypeAdapter(Spending)
_REPLY = TypeAdapter(dict[str, dict[str, str] | None])
_logger = logging.getLogger(__name__)


class Ledger:
    """One SQLite file, `ledger.sqlite` in the run's folder; in memory if there is no folder.

    Death of the process loses nothing that was written; loss of power may lose the last moments (WAL mode,
    `synchronous=NORMAL`). Used by one thread at a time. One process at a time: the file is locked while it is open.

    Args:
        log_dir: The run's folder, made if need be; None to keep the ledger in memory.
        settings: What decides the run's course, by name, as short texts. A run is resumed only with equal settings;
            where only code differs (names that begin with `CODE`), a warning names it and the run goes on.

    Attributes:
        forgotten: LM calls, tokens and dollars of what failed in earlier sessions and is tried again.

    Raises:
        ValueError: If `log_dir` is no folder, the run in it was made with other settings, or the file is not such a
            ledger, of another version or damaged. The file is left as it is. Damage behind its first page may only be
            noticed when that is read, by this class or one of its methods.
        OSError: If the folder cannot be made or the file cannot be opened.
        RuntimeError: If another process has the run open.
    """

    def __init__(self, log_dir: str | Path | None, settings: Mapping[str, str]) -> None:
        self._path = None if log_dir is None else Path(log_dir) / LEDGER
        if self._path is not None:
            _make_folder(self._path.parent)
            refuse_what_is_not_ours(self._path)
        self._is_missed = False
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
        except (sqlite3.DatabaseError, ValueError) as error:
            self.close()
            if isinstance(error, sqlite3.DatabaseError):
                raise damaged(self._path, error) from error
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
        with reading(self._path):
            before = {str(name): str(value) for name, value in self._file.execute("SELECT name, value FROM settings")}
        changed = [name for name in sorted({*before, *settings}) if before.get(name) != settings.get(name)]
        if other := [name for name in changed if not name.startswith(CODE)]:
            old, new = ({name: each.get(name, "none") for name in other} for each in (before, settings))
            told = (
                name if HASH in old[name] + new[name] else f"{name}: {old[name]} then, {new[name]} now"
                for name in other
            )
            raise ValueError(
                f"Run {self._path.parent if self._path else ''} was made with other settings: {'; '.join(told)}. "
                "Use a new `log_dir`, or restore them."
            )
        if changed:
            _logger.warning(
                "Since the run in %s was made, this changed: %s. The run goes on, and what it has paid for counts as "
                "the old code made it. Use a new `log_dir` if the change matters.",
                self._path.parent if self._path else "",
                ", ".join(changed),
            )
            self._file.execute("BEGIN")
            self._file.executemany("DELETE FROM settings WHERE name = ?", [(name,) for name in changed])
            known = [(name, settings[name]) for name in changed if name in settings]
            self._file.executemany("INSERT INTO settings VALUES (?, ?)", known)
            self._file.execute("COMMIT")
        self.forgotten = self._forget_failures()

    def _forget_failures(self) -> Spending:
        """Drop what failed and was not settled, to be tried again; return what all that was dropped so far had cost."""
        with reading(self._path):
            note = self._file.execute("SELECT value FROM notes WHERE name = ?", [_FORGOTTEN]).fetchone()
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
        with reading(self._path):
            statement = f"SELECT record FROM rollouts WHERE {where}"
            row = self._file.execute(statement, (candidate, example, repeat)).fetchone()
            return _ROLLOUT.validate_json(row[0]) if row else None

    def add_rollout(self, rollout: Rollout) -> None:
        """Keep a rollout; a lost one only counts on resume once it is settled."""
        key, record = (rollout.candidate, rollout.example, rollout.repeat), _json(_ROLLOUT, rollout)
        self._write("INSERT INTO rollouts VALUES (?, ?, ?, ?, ?, ?)", *key, rollout.score, record, not rollout.lost)

    def reply(self, key: str) -> tuple[dict[str, Any], Spending] | None:
        """Return the reply of critic or proposer to the request of this key, and what it cost, if it was paid for."""
        with reading(self._path):
            row = self._file.execute("SELECT reply, spent FROM replies WHERE key = ?", (key,)).fetchone()
            return (_REPLY.validate_json(row[0]), _SPENDING.validate_json(row[1])) if row else None

    def add_reply(self, key: str, reply: Mapping[str, Any], spent: Spending, *, failed: bool = False) -> None:
        """Keep a reply; that of a failed call only counts on resume once it is settled."""
        values = (key, json.dumps(jsonable(reply)), _json(_SPENDING, spent), not failed)
        self._write("INSERT INTO replies VALUES (?, ?, ?, ?)", *values)

    def add_step(self, record: StepRecord, state: State) -> None:
        """Keep the record of a completed step, and the state of the policies after it; settle what failed in it."""
        self._check_that_it_is_there()
        values = (record.step, _json(_STEP, record), json.dumps(jsonable(state)))
        self._write("INSERT OR REPLACE INTO steps VALUES (?, ?, ?)", *values)
        self.settle()

    def forget_steps(self, start: int) -> None:
        """Drop the records of steps from an index on: those of an earlier run with more steps."""
        self._write("DELETE FROM steps WHERE step >= ?", start)

    def add_notes(self, **notes: Any) -> None:
        """Keep values for those who look at the run, all or none: what it was made with, how it ended.

        Each is kept as JSON; None says that there is nothing yet.
        """
        texts = [(name, "" if note is None else json.dumps(jsonable(note))) for name, note in notes.items()]
        self._write("BEGIN")
        for each in texts:
            self._write("INSERT OR REPLACE INTO notes VALUES (?, ?)", *each)
        self._write("COMMIT")

    def note(self, name: str) -> str:
        """Return a value that was kept, as JSON; empty if there is none."""
        with reading(self._path):
            row = self._file.execute("SELECT value FROM notes WHERE name = ?", (name,)).fetchone()
            return str(row[0]) if row else ""

    @property
    def num_steps(self) -> int:
        """How many steps are kept."""
        with reading(self._path):
            return int(self._file.execute("SELECT count(*) FROM steps").fetchone()[0])

    @property
    def paid(self) -> Spending:
        """What the run has spent: on everything in the ledger, and on failures that were dropped."""
        with reading(self._path):
            return self.forgotten + paid_in(self._file)

    def unsettle(self, candidate: str, example: str | None = None) -> None:
        """Let the rollouts of a candidate, on one example or on all, be tried again on resume."""
        where = "candidate = ?1 AND (?2 IS NULL OR example = ?2)"
        self._write(f"UPDATE rollouts SET settled = 0 WHERE {where}", candidate, example)

    def unsettle_replies(self, keys: Iterable[str]) -> None:
        """Let questions to critic or proposer be put again on resume."""
        for key in keys:
            self._write("UPDATE replies SET settled = 0 WHERE key = ?", key)

    def settle(self) -> None:
        """Let the failures so far stand: what follows builds on them."""
        for table in ("rollouts", "replies"):
            self._write(f"UPDATE {table} SET settled = 1 WHERE settled = 0")

    def _check_that_it_is_there(self) -> None:
        if self._path is not None and not self._path.exists() and not self._is_missed:
            self._is_missed = True
            _logger.warning(
                "%s is gone: somebody deleted or moved it while the run goes on. The run ends as usual, but cannot be "
                "resumed or read later.",
                self._path,
            )

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

    It looks at the head of the file without a lock or a file beside it, so that what is not ours stays as it is. A
    damaged write-ahead log is refused too: SQLite would take what it can read of it, and say nothing of the rest.
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
    if not is_whole(beside := path.with_name(f"{path.name}-wal")):
        raise ValueError(
            f"{path} is damaged: its last entries are in {beside.name}, which cannot be read. Use a new `log_dir`, or "
            f"delete {beside.name} to go on without them."
        )
    if version != _SCHEMA_VERSION:
        age = "a newer" if version > _SCHEMA_VERSION else "an older"
        raise ValueError(f"{path} is of {age} dspy_dlpo (schema {version}). Use that, or a new `log_dir`.")


def _make_folder(folder: Path) -> None:
    if folder.is_symlink() and not folder.exists():
        raise ValueError(f"`log_dir` must be a folder, but {folder} is a link to nothing. Mend it, or use another.")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"`log_dir` must be a folder, but {folder} is a file. Use another.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"`log_dir` must be a folder that can be made, but {folder} cannot: {error}. Use another."
        ) from error


@contextmanager
def reading(path: Path | None) -> Iterator[None]:
    """Turn whatever damage makes of reading a ledger into one error; of a lock it says nothing.

    Raises:
        ValueError: If what was read is no record.
    """
    try:
        yield
    except sqlite3.OperationalError as error:
        if "decode" not in str(error):
            raise
        raise damaged(path, error) from error
    except (sqlite3.DatabaseError, ValueError, TypeError, KeyError, IndexError) as error:
        raise damaged(path, error) from error


def paid_in(file: sqlite3.Connection) -> Spending:
    """Return what the rollouts and replies in a ledger have cost."""
    rows = file.execute("SELECT json_extract(record, '$.spent') FROM rollouts UNION ALL SELECT spent FROM replies")
    return reduce(add, (_SPENDING.validate_json(spent) for (spent,) in rows), Spending())


def _json(kind: TypeAdapter[Any], value: Any) -> str:
    try:
        return kind.dump_json(value).decode()
    except (PydanticSerializationError, ValueError):  # A text with half a character, a value that is no JSON.
        return json.dumps(jsonable(value))


def damaged(path: Path | None, error: Exception) -> ValueError:
    """Return the error for a file that SQLite, or a record of it that we, cannot read."""
    reason = str(error).partition("\n")[0]
    return ValueError(f"{path} is damaged or not a ledger ({reason}). Use a new `log_dir`.")
