"""Files that the engine cannot load are refused in words: in the engine itself they end the process."""

from __future__ import annotations

from pathlib import Path

import pytest

from dspy_dlpo.local.gguf import ARCHITECTURES, check_gguf
from tests.local.files import write_gguf


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_whole_file_of_a_known_kind_passes(architecture: str, tmp_path: Path) -> None:
    check_gguf(write_gguf(tmp_path / "model.gguf", architecture=architecture))


def test_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "model.gguf").read_bytes()
    for length in range(4, len(whole)):
        (path := tmp_path / "cut.gguf").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut off.*Delete it and fetch it again"):
            check_gguf(path)


def test_file_of_another_format_is_refused(tmp_path: Path) -> None:
    (path := tmp_path / "model.gguf").write_text("<html>Not found</html>")
    with pytest.raises(ValueError, match="is not a GGUF file"):
        check_gguf(path)


@pytest.mark.parametrize("architecture", ["gemma3", "phi3", "qwen3moe", ""])
def test_unknown_architecture_names_itself_and_the_way_out(architecture: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", architecture=architecture)
    with pytest.raises(ValueError, match=rf"llama, qwen2, qwen3, but it is '{architecture}'.*Ollama.*dspy\.LM"):
        check_gguf(path)


@pytest.mark.parametrize(("kind", "name"), [(6, "Q5_0"), (13, "Q5_K"), (39, "MXFP4"), (77, "type 77")])
def test_unknown_kind_of_tensor_names_itself_and_the_file_to_take(kind: int, name: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", kind=kind)
    with pytest.raises(ValueError, match=rf"but has {name}, .*Take the Q8_0 file"):
        check_gguf(path)
