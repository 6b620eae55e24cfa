from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from dspy_dlpo.core.records import Call, Candidate, Rollout, Spending
from dspy_dlpo.core.steps import StepRecord, Threshold, Trial
from dspy_dlpo.runtime.ledger import Ledger
from dspy_dlpo.runtime.reading import read_run
from dspy_dlpo.runtime.wal import is_whole

ROLLOUT = Rollout("abc", "train:1", 0.5, "meh", "", (Call("self", {"q": "1"}, {"a": "2"}),), Spending(1, 2, 3, 4, 0.5))


@pytest.mark.parametrize("on_disk", [False, True])
def test_ledger_gives_back_what_was_written(tmp_path: Path, on_disk: bool) -> None:
    ledger = Ledger(tmp_path if on_disk else None, {"seed": "0"})
    ledger.add_rollout(ROLLOUT)
    ledger.add_reply("key", {"fields": {"edits": "ADD x"}}, Spending(lm_calls=1))
    if on_disk:
        ledger.close()
        ledger = Ledger(tmp_path, {"seed": "0"})
    assert ledger.rollout("abc", "train:1") == ROLLOUT
    assert ledger.rollout("abc", "train:2") is ledger.rollout("abc", "train:1", 1) is None
    assert ledger.reply("key") == ({"fields": {"edits": "ADD x"}}, Spending(lm_calls=1))
    ledger.close()


def test_failure_is_forgotten_on_resume_unless_a_completed_step_built_on_it(tmp_path: Path) -> None:
    lost = replace(ROLLOUT, lost=True)
    for settled in (False, True):
        ledger = Ledger(tmp_path, {})
        ledger.add_rollout(lost)
        ledger.add_reply("key", {"fields": None}, Spending(), failed=True)
        assert ledger.rollout("abc", "train:1") == lost
        if settled:
            ledger.add_step(StepRecord(0, "abc", ("train:1",), 0.5), [])
        ledger.close()
        ledger = Ledger(tmp_path, {})
        assert (ledger.rollout("abc", "train:1") == lost) is settled
        assert (ledger.reply("key") is not None) is settled
        ledger.close()


def test_step_with_a_trial_survives_a_json_round_trip() -> None:
    trial = Trial("a", "b", (0.5, -0.5), 10, Threshold(-0.1, {"temperature": 0.5}), accepted=True)
    step = StepRecord(0, "b", ("train:1",), 0.5, trial=trial)
    adapter = TypeAdapter(StepRecord)
    assert adapter.validate_json(adapter.dump_json(step)) == step


def test_second_process_on_one_folder_is_refused(tmp_path: Path) -> None:
    first = Ledger(tmp_path, {})
    with pytest.raises(RuntimeError, match=r"Another process has .*ledger.sqlite open"):
        Ledger(tmp_path, {})
    first.close()
    Ledger(tmp_path, {}).close()


def garbage(path: Path) -> None:
    path.write_bytes(b"not a database, but long enough to be read as one" * 100)


def foreign(path: Path) -> None:
    """Leave a database of another program as its death would: with changes beside it that it has not taken in."""
    file = sqlite3.connect(path.with_name("alive.sqlite"))
    file.execute("PRAGMA journal_mode=WAL")
    file.execute("CREATE TABLE mine (x)")
    file.commit()
    for name in ("", "-wal"):
        shutil.copy(f"{path.with_name('alive.sqlite')}{name}", f"{path}{name}")
    file.close()
    path.with_name("alive.sqlite").unlink()


def of_schema(version: int, path: Path) -> None:
    Ledger(path.parent, {}).close()
    file = sqlite3.connect(path)
    file.execute(f"PRAGMA user_version={version}")
    file.close()


def torn(path: Path) -> None:
    Ledger(path.parent, {}).close()
    path.write_bytes(path.read_bytes()[:4096] + b"\xff" * 4096 * 7)


def truncated(path: Path) -> None:
    Ledger(path.parent, {}).close()
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (garbage, "is damaged or not a ledger"),
        (torn, "is damaged or not a ledger"),
        (truncated, "is damaged or not a ledger"),
        (foreign, "is not a ledger of dspy_dlpo"),
        (partial(of_schema, 99), r"is of a newer dspy_dlpo \(schema 99\)"),
        (partial(of_schema, 1), r"is of an older dspy_dlpo \(schema 1\)"),
    ],
    ids=["garbage", "torn", "truncated", "foreign", "newer", "older"],
)
def test_file_that_is_no_good_ledger_is_refused_and_stays_as_it_is_byte_for_byte(
    tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(tmp_path / "ledger.sqlite")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=message):
        Ledger(tmp_path, {})
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_damage_that_only_reading_finds_is_told_with_the_way_out(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, {})
    for number in range(200):
        ledger.add_rollout(Rollout("candidate", f"train:{number}", 1.0, feedback="x" * 500))
    ledger.close()
    path = tmp_path / "ledger.sqlite"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] + b"\xff" * (len(whole) - len(whole) // 2))

    def read_all() -> None:
        spoilt = Ledger(tmp_path, {})
        try:
            for number in range(200):
                spoilt.rollout("candidate", f"train:{number}")
        finally:
            spoilt.close()

    with pytest.raises(ValueError, match=r"ledger.sqlite is damaged or not a ledger .* Use a new `log_dir`"):
        read_all()


def test_death_while_a_ledger_was_made_leaves_one_that_can_be_opened(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").touch()
    Ledger(tmp_path, {"seed": "0"}).close()
    Ledger(tmp_path, {"seed": "0"}).close()


def test_steps_are_kept_with_the_states_of_the_policies(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, {})
    candidate = Candidate({"self": "Be kind."}, parent="abc")
    record = StepRecord(0, "abc", ("train:1",), 0.5, candidates=(candidate,), lost=2)
    ledger.add_step(record, [{"temperature": 0.5}, {}])
    ledger.close()
    with sqlite3.connect(tmp_path / "ledger.sqlite") as file:
        ((step, kept, states),) = file.execute("SELECT * FROM steps").fetchall()
    file.close()
    assert TypeAdapter(StepRecord).validate_json(kept) == record
    assert (step, json.loads(states)) == (0, [{"temperature": 0.5}, {}])


def test_other_settings_are_named(tmp_path: Path) -> None:
    Ledger(tmp_path, {"seed": "0", "policies": "a"}).close()
    with pytest.raises(ValueError, match=r"other settings: policies: a then, b now; seed: 0 then, 1 now"):
        Ledger(tmp_path, {"seed": "1", "policies": "b"})


def corrupted(statement: str, log_dir: Path) -> None:
    """Change a ledger behind the back of SQLite's own checks."""
    with closing(sqlite3.connect(log_dir / "ledger.sqlite")) as file:
        file.execute(statement)
        file.commit()


DAMAGE = {
    "record that is no JSON": "UPDATE rollouts SET record = substr(record, 2)",
    "record of another form": "UPDATE rollouts SET record = replace(record, 'score', 'scare')",
    "record of bytes": "UPDATE rollouts SET record = CAST(x'ff00fe' AS TEXT)",
    "record that is a number": "UPDATE rollouts SET record = 7",
    "reply of another form": "UPDATE replies SET reply = '[1]'",
    "reply without fields": "UPDATE replies SET reply = '{\"fields\": 3}'",
    "spending of another form": 'UPDATE replies SET spent = \'{"lm_calls": "many"}\'',
    "settings of bytes": "UPDATE settings SET value = CAST(x'ff' AS TEXT)",
    "no table": "DROP TABLE rollouts",
}


@pytest.mark.parametrize("statement", DAMAGE.values(), ids=DAMAGE)
def test_damage_of_any_kind_is_one_clear_error(tmp_path: Path, statement: str) -> None:
    ledger = Ledger(tmp_path, {"seed": "0"})
    ledger.add_rollout(ROLLOUT)
    ledger.add_reply("key", {"fields": {"edits": "ADD x"}}, Spending(lm_calls=1))
    ledger.close()
    corrupted(statement, tmp_path)

    def use() -> None:
        spoilt = Ledger(tmp_path, {"seed": "0"})
        try:
            spoilt.rollout("abc", "train:1")
            spoilt.reply("key")
        finally:
            spoilt.close()

    with pytest.raises((ValueError, OSError), match=r"(is damaged or not a ledger|cannot be opened)"):
        use()


def with_log(log_dir: Path) -> Path:
    """Leave a ledger as a death would, with its last entries in the write-ahead log; return the log."""
    alive = log_dir / "alive"
    ledger = Ledger(alive, {"seed": "0"})
    for number in range(5):
        ledger.add_rollout(replace(ROLLOUT, example=f"train:{number}"))
    for name in ("ledger.sqlite", "ledger.sqlite-wal"):
        shutil.copy(alive / name, log_dir / name)
    ledger.close()
    return log_dir / "ledger.sqlite-wal"


def test_write_ahead_log_of_a_death_is_whole_also_without_its_last_bytes(tmp_path: Path) -> None:
    log = with_log(tmp_path)
    assert is_whole(log)
    log.write_bytes(log.read_bytes()[:-2000])
    assert is_whole(log)
    ledger = Ledger(tmp_path, {"seed": "0"})
    assert ledger.rollout("abc", "train:2") is not None
    ledger.close()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda log: bytes(len(log)),
        lambda log: bytes(32) + log[32:],
        lambda log: log[:60] + bytes([log[60] ^ 1]) + log[61:],
        lambda log: log[:32] + bytes(4120) + log[32 + 4120 :],
    ],
    ids=["zeros", "head", "flipped bit", "first frame"],
)
def test_damaged_write_ahead_log_is_refused_with_the_way_out(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    log = with_log(tmp_path)
    log.write_bytes(spoil(log.read_bytes()))
    for open_it in (lambda: Ledger(tmp_path, {"seed": "0"}), lambda: read_run(tmp_path)):
        with pytest.raises(ValueError, match=r"last entries are in ledger.sqlite-wal, .* or delete ledger.sqlite-wal"):
            open_it()


def test_run_killed_before_or_between_its_first_notes_is_read_or_refused_in_a_sentence(tmp_path: Path) -> None:
    Ledger(tmp_path / "before", {}).close()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "ledger.sqlite").touch()
    for name in ("before", "empty"):
        with pytest.raises(ValueError, match=r"ended before it began\. Make it again"):
            read_run(tmp_path / name)
    ledger = Ledger(tmp_path / "between", {})
    ledger.add_notes(run={"a": 1})
    ledger.close()
    assert read_run(tmp_path / "between").notes["run"] == '{"a": 1}'


def test_run_on_storage_that_cannot_be_written_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_log(tmp_path)
    ledger = Ledger(tmp_path, {"seed": "0"})
    ledger.add_notes(run={"a": 1}, result=None)
    ledger.close()
    connect = sqlite3.connect

    def read_only(path: Any, **settings: Any) -> Any:
        if Path(str(path)).parent == tmp_path:
            raise sqlite3.OperationalError("unable to open database file")
        return connect(path, **settings)

    monkeypatch.setattr("dspy_dlpo.runtime.reading.sqlite3.connect", read_only)  # As on a medium without writing.
    assert read_run(tmp_path).notes == {"run": '{"a": 1}', "result": ""}


def test_folder_that_is_none_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"`log_dir` must be a folder, but .*file is a file"):
        Ledger(tmp_path / "file", {})
    with pytest.raises(ValueError, match=r"`log_dir` must be a folder, but .*link is a link to nothing"):
        Ledger(tmp_path / "link", {})
    with pytest.raises(OSError, match="`log_dir` must be a folder that can be made"):
        Ledger(tmp_path / "file" / "below", {})


def test_folder_that_is_deleted_in_mid_run_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger(tmp_path / "run", {})
    shutil.rmtree(tmp_path / "run")
    for step in range(3):
        ledger.add_step(StepRecord(step, "abc", (), 0.0), {})
    ledger.close()
    assert caplog.text.count("is gone: somebody deleted or moved it") == 1
