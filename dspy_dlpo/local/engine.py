"""A language model on this machine: no account, no server, no compiler.

`local_lm` returns a `dspy.LM` whose engine runs a GGUF file in this process with OpenVINO GenAI, which comes as a
prebuilt wheel. It answers the prompts of many threads at once, so give it 8 or more.
"""

from __future__ import annotations

import atexit
import secrets
import threading
import weakref
from collections.abc import Callable, Iterator
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

from dspy_dlpo.local.batching import Batcher, Process, Refused
from dspy_dlpo.local.gguf import SERVER, check_gguf
from dspy_dlpo.local.machine import check_machine
from dspy_dlpo.local.weights import check_extra, sha256_of, weights_path
from dspy_dlpo.local.worker import CACHE_GB
from dspy_dlpo.runtime.waiting import AsyncEngine

_MAX_SEED = 2**63
_lock = threading.Lock()
_engines: weakref.WeakValueDictionary[tuple[Any, ...], LocalEngine] = weakref.WeakValueDictionary()  # Of this process.


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
        model: One of `MODELS` (Qwen2.5-Coder-1.5B-Instruct, 4 bit, Apache-2.0; 1.1 GB, fetched once), a path to a GGUF
            file, or a hub repository: `"owner/name"` for its Q4_K_M file, `"owner/name:FILE.gguf"` for another (`FILE`
            may hold wildcards).
        num_ctx: Context length in tokens, prompt and answer together.
        num_threads: CPU threads of the model. Default: all cores.
        temperature: Sampling temperature. 0 is greedy; see `LocalEngine` for how far the same prompt gives the same
            answer.
        max_tokens: Most tokens in one answer.
        **lm_kwargs: Everything else `dspy.LM` takes (`cache`, `stop`, `seed`, ...).

    Returns:
        A `dspy.LM` whose `model` is `local/NAME-HASH`: the hash of the file is in the name, so that DSPy's cache
        never mixes the answers of two files.

    Raises:
        ImportError: If the extra `local` is not installed.
        FileNotFoundError: If `model` is neither a known name, nor a hub repository, nor a file.
        ValueError: If the file is not a GGUF file, was cut off, has a wrong checksum, or holds a kind of model that
            the engine cannot run.
        RuntimeError: If neither the hub nor pip can fetch the weights, or the processor is too old.
        OSError: If the disk is too small for the weights.

    A saved program holds the path of the file, not the weights, and is loaded with
    `program.load(path, allow_unsafe_lm_state=True)`, which DSPy asks for with every engine of one's own.
    """
    engine = LocalEngine(weights_path(model), num_ctx=num_ctx, num_threads=num_threads)
    name, digest = engine.path.stem, engine.sha256[:12]
    return dspy.LM(
        f"local/{name}" if name.endswith(digest) else f"local/{name}-{digest}",
        engine=engine,
        async_engine=AsyncLocalEngine(engine),
        temperature=temperature,
        max_tokens=max_tokens,
        num_retries=0,
        **lm_kwargs,
    )


class LocalEngine:
    """A `dspy.LM` engine on OpenVINO GenAI: one file, one process, the prompts of all threads answered together.

    A copy is the engine itself: the weights are in memory once. They are loaded at the first request. An engine that
    is sent to another process loads them there, again once. The beginning of a prompt that an earlier one had too is
    not computed again.

    At temperature 0 the same prompt mostly gives the same answer, but not always. What is in flight with it, and what
    of it was computed before, changes in which pieces it is computed, and so the last digits: by up to 0.04 in the
    logarithm of a token's probability, on 12 prompts. Where two tokens are as close as that, answers part. A seed fixes
    what is drawn, not these digits. Arithmetic in 32 bits (0.02) and no prefix caching (0.04) do not cure it. So a
    run is the same again if DSPy's cache or the run's `log_dir` has its replies, or if it asks one prompt at a time, in
    the same order, from the start (`num_threads=1`).

    Args:
        path: The GGUF file: a model of the kinds llama, qwen2 and qwen3, 4 or 8 bit.
        num_ctx: Context length in tokens.
        num_threads: CPU threads. Default: all cores.

    Raises:
        ValueError: If the engine cannot load the file.
    """

    def __init__(self, path: str | Path, *, num_ctx: int = 4096, num_threads: int | None = None) -> None:
        self.path = Path(path)
        self.num_ctx = num_ctx
        self.num_threads = num_threads
        check_gguf(self.path)
        self.sha256 = sha256_of(self.path)
        self._lock = threading.Lock()
        self._batcher: Batcher | None = None
        _engines[_key(self.dump_state())] = self

    def complete(self, request: Request) -> Response:
        """Answer one request. Honours temperature, top_p, top_k, max_tokens, stop, seed, penalties and JSON mode.

        Raises:
            ContextLengthError: If the prompt leaves no room for an answer in `num_ctx`.
            UnsupportedFeatureError: If the request holds tools, log probabilities, or anything that is not text.
            MemoryError: If the machine has not the memory that the model needs.
            RuntimeError: If the processor is too old, or the request was cancelled.
        """
        if request.tools:
            raise UnsupportedFeatureError("The local model takes no tools.", feature="tools")
        if request.config.logprobs:
            raise UnsupportedFeatureError("The local model gives no log probabilities.", feature="logprobs")
        try:
            answer = self.load().ask(_messages(request), _settings(request))
        except Refused as error:
            raise ContextLengthError(str(error)) from error
        if answer is None:
            raise ContextLengthError(f"The prompt does not fit into the engine's cache of {CACHE_GB} GB. Shorten it.")
        return Response(
            id=None,
            model=request.model,
            message=Message.assistant(_before(answer["text"], request.config.stop)),
            finish_reason=answer["finish_reason"],
            usage=Usage(input_tokens=answer["input_tokens"], output_tokens=answer["output_tokens"]),
        )

    def stream(self, request: Request) -> Iterator[object]:
        """Give the whole answer as one stream."""
        yield from response_to_events(self.complete(request))

    @property
    def in_flight(self) -> int:
        """How many requests are being answered or wait for a slot."""
        batcher = self._batcher
        return batcher.in_flight if batcher else 0

    def cancel(self) -> None:
        """Give up all requests in flight, whose threads get `Cancelled`, and free their slots."""
        batcher = self._batcher
        if batcher is not None:
            batcher.cancel()

    def close(self) -> None:
        """Give up what is in flight and free the weights; the next call loads them again."""
        with self._lock:
            if self._batcher is not None:
                self._batcher.close()
                self._batcher = None

    def dump_state(self) -> dict[str, Any]:
        """Return what `load_state` needs: the path, not the weights."""
        return {"path": str(self.path), "num_ctx": self.num_ctx, "num_threads": self.num_threads}

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> LocalEngine:
        """Return the engine that `dump_state` described: the one of this process, if it has one."""
        return _engine(state)

    def __deepcopy__(self, memo: dict[int, Any]) -> LocalEngine:
        return self

    def __reduce__(self) -> tuple[Callable[[dict[str, Any]], LocalEngine], tuple[dict[str, Any]]]:
        return _engine, (self.dump_state(),)

    def load(self) -> Batcher:
        """Start the process with the model, unless it runs; the first request does it too."""
        with self._lock:
            if self._batcher is None or not self._batcher.is_open:
                check_extra("openvino_genai")
                check_machine(self.path.stat().st_size, CACHE_GB * 2**30)
                settings = {"path": str(self.path), "num_ctx": self.num_ctx, "num_threads": self.num_threads}
                try:
                    process = Process(settings)
                except ValueError as error:
                    reason = str(error).strip().splitlines()[-1]
                    raise ValueError(f"OpenVINO could not load {self.path}: {reason}. {SERVER}") from error
                self._batcher = Batcher(process)
                atexit.register(_close, weakref.ref(self))  # The model's process must not outlive this one.
            return self._batcher


class AsyncLocalEngine(AsyncEngine):
    """The engine for asynchronous calls: each waits in a thread, and all threads are answered together."""

    def dump_state(self) -> dict[str, Any]:
        """Return what `load_state` needs: the state of the engine."""
        return dict(self.engine.dump_state())

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> AsyncLocalEngine:
        """Return the counterpart of the engine that `dump_state` described."""
        return cls(LocalEngine.load_state(state))


def _engine(state: dict[str, Any]) -> LocalEngine:
    with _lock:
        known = _engines.get(_key(state))
        return known or LocalEngine(state["path"], num_ctx=state["num_ctx"], num_threads=state["num_threads"])


def _key(state: dict[str, Any]) -> tuple[Any, ...]:
    """Return what two engines have in common that would hold the same weights."""
    file = Path(state["path"])
    return str(file.resolve()), file.stat().st_mtime_ns if file.exists() else None, *state.values()


def _settings(request: Request) -> dict[str, Any]:
    """Return what the worker is told about a request, as JSON."""
    asked = request.config
    settings: dict[str, Any] = {
        "max_new_tokens": asked.max_tokens,
        "stop_strings": list(asked.stop),
        "json_schema": _schema(asked.response_format),
        "do_sample": bool(asked.temperature),
    }
    if asked.temperature:
        seed = secrets.randbelow(_MAX_SEED) if asked.seed is None else asked.seed % _MAX_SEED
        drawn = {"temperature": asked.temperature, "rng_seed": seed, "top_p": asked.top_p, "top_k": asked.top_k}
        settings |= {name: value for name, value in drawn.items() if value is not None}
    penalties = {"frequency_penalty": asked.frequency_penalty, "presence_penalty": asked.presence_penalty}
    return settings | {name: value for name, value in penalties.items() if value is not None}


def _close(engine: weakref.ref[LocalEngine]) -> None:
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


def _schema(response_format: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the JSON schema that the answer must follow; None for free text. DSPy has checked the form."""
    if response_format is None:
        return None
    return {"type": "object"} if response_format["type"] == "json_object" else response_format["schema"]


def _before(text: str, stops: tuple[str, ...]) -> str:
    """Cut the text at the first stop: the engine ends with the token that completes it, which may hold more."""
    return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]
