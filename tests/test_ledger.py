from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from dspy_dlpo.ledger import Ledger
from dspy_dlpo.records import Call, Rollout, Spending

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
    assert ledger.rollout("abc", "train:2") is None
    assert ledger.reply("key") == ({"fields": {"edits": "ADD x"}}, Spending(lm_calls=1))
    ledger.close()


def test_second_process_on_one_folder_is_refused(tmp_path: Path) -> None:
    first = Ledger(tmp_path, {})
    with pytest.raises(RuntimeError, match=r"Another process has .*ledger.sqlite open"):
        Ledger(tmp_path, {})
    first.close()
    Ledger(tmp_path, {}).close()


def test_foreign_damaged_or_newer_file_is_refused_and_left_untouched(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"not a database, but long enough to be read as one" * 100)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="is damaged or not a ledger"):
        Ledger(tmp_path, {})
    assert path.read_bytes() == before
    path.unlink()

    foreign = sqlite3.connect(path)
    foreign.execute("CREATE TABLE mine (x)")
    foreign.close()
    before = path.read_bytes()
    with pytest.raises(ValueError, match="is not a ledger of dspy_dlpo"):
        Ledger(tmp_path, {})
    assert path.read_bytes() == before
    path.unlink()

    Ledger(tmp_path, {}).close()
    newer = sqlite3.connect(path)
    newer.execute("PRAGMA user_version=99")
    newer.close()
    with pytest.raises(ValueError, match=r"newer dspy_dlpo \(schema 99\)"):
        Ledger(tmp_path, {})


def test_other_settings_are_named(tmp_path: Path) -> None:
    Ledger(tmp_path, {"seed": "0", "policies": "a"}).close()
    with pytest.raises(ValueError, match=r"other settings \(policies, seed\)"):
        Ledger(tmp_path, {"seed": "1", "policies": "b"})
