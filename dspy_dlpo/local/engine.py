"""A language model on this machine: no account, no server, no compiler.

`local_lm` returns a `dspy.LM` whose engine runs a GGUF file in this process with OpenVINO GenAI, which comes as a
prebuilt wheel. It answers the prompts of many threads at once, so give it 8 or more.
"""

from __future__ import annotations

import atexit
import json
import secrets
import threading
import weakref
from collections.abc import Iterator
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

from dspy_dlpo.local.batching import Batcher
from dspy_dlpo.local.gguf import SERVER, check_gguf
from dspy_dlpo.local.machine import check_machine
from dspy_dlpo.local.weights import import_extra, sha256_of, weights_path

MAX_IN_FLIGHT = 24
"""Prompts that are answered at once; more wait. Beyond it, an answer takes longer and no more come in a minute."""

_CACHE_GB = 1
_BATCHED_TOKENS = 512  # Of new prompts in one step, while the answers of others wait.
_MAX_SEED = 2**63


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
        temperature=temperature,
        max_tokens=max_tokens,
        num_retries=0,
        **lm_kwargs,
    )


class LocalEngine:
    """A `dspy.LM` engine on OpenVINO GenAI: one file, one process, the prompts of all threads answered together.

    A copy is the engine itself: the weights are in memory once. They are loaded at the first request. The beginning of
    a prompt that an earlier one had too is not computed again.

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
        self._loaded: _Loaded | None = None

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
        messages = _messages(request)
        loaded = self.load()
        tokens = loaded.tokens(messages)
        num_tokens = tokens.shape[1]
        if num_tokens >= self.num_ctx:
            raise ContextLengthError(
                f"The prompt has {num_tokens} tokens, which leaves no room for an answer in num_ctx={self.num_ctx}. "
                "Shorten the prompt, or raise `num_ctx`."
            )
        output = loaded.batcher.ask(tokens, self._settings(request, loaded, self.num_ctx - num_tokens))
        if output is None:
            raise ContextLengthError(
                f"The prompt of {num_tokens} tokens does not fit into the engine's cache of {_CACHE_GB} GB. Shorten it."
            )
        return Response(
            id=None,
            model=request.model,
            message=Message.assistant(_before(loaded.text(output.generated_ids), request.config.stop)),
            finish_reason="length" if output.finish_reason.name == "LENGTH" else "stop",
            usage=Usage(input_tokens=num_tokens, output_tokens=len(output.generated_ids)),
        )

    def stream(self, request: Request) -> Iterator[object]:
        """Give the whole answer as one stream."""
        yield from response_to_events(self.complete(request))

    @property
    def in_flight(self) -> int:
        """How many requests are being answered or wait for a slot."""
        loaded = self._loaded
        return loaded.batcher.in_flight if loaded else 0

    def cancel(self) -> None:
        """Give up all requests in flight, whose threads get `Cancelled`, and free their slots."""
        loaded = self._loaded
        if loaded is not None:
            loaded.batcher.cancel()

    def close(self) -> None:
        """Give up what is in flight and free the weights; the next call loads them again."""
        with self._lock:
            if self._loaded is not None:
                self._loaded.batcher.close()
                self._loaded = None

    def dump_state(self) -> dict[str, Any]:
        """Return what `load_state` needs: the path, not the weights."""
        return {"path": str(self.path), "num_ctx": self.num_ctx, "num_threads": self.num_threads}

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> LocalEngine:
        """Return the engine that `dump_state` described."""
        return cls(state["path"], num_ctx=state["num_ctx"], num_threads=state["num_threads"])

    def __deepcopy__(self, memo: dict[int, Any]) -> LocalEngine:
        return self

    def load(self) -> _Loaded:
        """Load the weights, unless they are; the first request does it too."""
        with self._lock:
            if self._loaded is None or not self._loaded.batcher.is_open:
                self._loaded = _Loaded(self.path, self.num_threads)
                atexit.register(_close, weakref.ref(self))  # The engine's thread must not outlive the interpreter.
            return self._loaded

    def _settings(self, request: Request, loaded: _Loaded, room: int) -> Any:
        asked, settings = request.config, loaded.defaults()
        settings.max_new_tokens = min(asked.max_tokens or room, room)
        settings.stop_strings = set(asked.stop)
        settings.do_sample = bool(asked.temperature)
        if asked.temperature:
            settings.temperature = asked.temperature
            settings.rng_seed = secrets.randbelow(_MAX_SEED) if asked.seed is None else asked.seed % _MAX_SEED
            if asked.top_p is not None:
                settings.top_p = asked.top_p
            if asked.top_k is not None:
                settings.top_k = asked.top_k
        if asked.frequency_penalty is not None:
            settings.frequency_penalty = asked.frequency_penalty
        if asked.presence_penalty is not None:
            settings.presence_penalty = asked.presence_penalty
        schema = _schema(asked.response_format)
        if schema is not None:
            settings.structured_output_config = loaded.genai.StructuredOutputConfig(json_schema=json.dumps(schema))
        return settings


class _Loaded:
    """The model in memory."""

    def __init__(self, path: Path, num_threads: int | None) -> None:
        self.genai = import_extra("openvino_genai")
        check_machine(path.stat().st_size, _CACHE_GB * 2**30)
        scheduler = self.genai.SchedulerConfig()
        scheduler.cache_size = _CACHE_GB
        scheduler.max_num_seqs = MAX_IN_FLIGHT
        scheduler.max_num_batched_tokens = _BATCHED_TOKENS
        scheduler.enable_prefix_caching = True
        properties = {} if num_threads is None else {"INFERENCE_NUM_THREADS": num_threads}
        try:
            pipeline = self.genai.ContinuousBatchingPipeline(str(path), scheduler, "CPU", properties)
        except (RuntimeError, IndexError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise ValueError(f"OpenVINO could not load {path}: {reason}. {SERVER}") from error
        self.defaults = pipeline.get_config
        self._tokenizer = pipeline.get_tokenizer()
        self._lock = threading.Lock()
        if not self._tokenizer.chat_template:
            raise ValueError(f"{path} has no chat template. Take the file of a model that was tuned for chat.")
        self.batcher = Batcher(pipeline)

    def tokens(self, messages: list[dict[str, str]]) -> Any:
        with self._lock:
            text = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True)
            return self._tokenizer.encode(text, add_special_tokens=False).input_ids

    def text(self, tokens: list[int]) -> str:
        with self._lock:
            return str(self._tokenizer.decode(tokens))


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
