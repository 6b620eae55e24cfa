"""What the engine asks of OpenVINO GenAI and makes of its answers, with a stand-in for the library."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cloudpickle
import dspy
import numpy as np
import psutil
import pydantic
import pytest
from dspy.lm15 import Config, Message, Request, UnsupportedFeatureError
from dspy.utils.exceptions import ContextWindowExceededError

from dspy_dlpo.local import engine as local
from dspy_dlpo.local import machine
from dspy_dlpo.local.engine import LocalEngine, local_lm
from dspy_dlpo.local.worker import Server
from tests.local.files import write_gguf


class Tokenizer:
    """A token is a character."""

    chat_template = "some"

    def apply_chat_template(self, messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
        return "|".join(f"{message['role']}:{message['content']}" for message in messages)

    def encode(self, text: str, *, add_special_tokens: bool) -> Any:
        return SimpleNamespace(input_ids=np.array([[ord(letter) for letter in text]]))

    def decode(self, tokens: list[int]) -> str:
        return "".join(map(chr, tokens))


@dataclass
class Library:
    """The stand-in: it answers `reply`, and notes what it was asked."""

    reply: str = "the answer"
    status: str = "FINISHED"
    reason: str = "STOP"
    problem: Exception | None = None
    template: str = "some"
    asked: list[tuple[str, Any]] = field(default_factory=list)
    made: list[tuple[str, Any, dict[str, Any]]] = field(default_factory=list)

    def pipeline(self, path: str, scheduler: Any, device: str, properties: dict[str, Any]) -> Any:
        self.made.append((path, scheduler, properties))
        if self.problem is not None:
            raise self.problem
        return self

    def get_config(self) -> Any:
        return SimpleNamespace(stop_token_ids={7})

    def get_tokenizer(self) -> Tokenizer:
        tokenizer = Tokenizer()
        tokenizer.chat_template = self.template
        return tokenizer

    def add_request(self, number: int, tokens: Any, settings: Any) -> Any:
        self.asked.append(("".join(map(chr, tokens[0])), settings))
        output = SimpleNamespace(generated_ids=[*map(ord, self.reply)], finish_reason=SimpleNamespace(name=self.reason))
        outputs = [output] if self.status == "FINISHED" else []
        return SimpleNamespace(
            get_status=lambda: SimpleNamespace(name=self.status), can_read=lambda: True, read_all=lambda: outputs
        )

    def has_non_finished_requests(self) -> bool:
        return False

    def step(self) -> None:
        pass


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    fake, module = Library(), ModuleType("openvino_genai")
    module.ContinuousBatchingPipeline = fake.pipeline  # type: ignore[attr-defined]  # A stand-in.
    module.SchedulerConfig = SimpleNamespace  # type: ignore[attr-defined]  # A stand-in.
    module.StructuredOutputConfig = SimpleNamespace  # type: ignore[attr-defined]  # A stand-in.

    class InProcess(Server):
        """The worker, in this process."""

        def __init__(self, settings: dict[str, Any]) -> None:
            try:
                super().__init__(module, **settings)
            except (RuntimeError, IndexError) as error:
                raise ValueError(str(error)) from error

        def close(self) -> None:
            pass

    monkeypatch.setattr(local, "Process", InProcess)
    monkeypatch.setattr(local, "check_extra", lambda package: None)
    return fake


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "mine.gguf")


@pytest.fixture
def engine(library: Library, path: Path) -> Iterator[LocalEngine]:
    made = LocalEngine(path, num_ctx=100)
    yield made
    made.close()


def request(text: str = "Hello", **settings: Any) -> Request:
    return Request(model="m", messages=(Message.user(text),), config=Config(**settings))


def test_answer_comes_with_its_tokens_counted(engine: LocalEngine, library: Library) -> None:
    asked = Request(model="m", system="Be brief.", messages=(Message.user("Hello"), Message.assistant("Yes?")))
    response = engine.complete(asked)
    assert response.message.text == "the answer"
    assert library.asked[0][0] == "system:Be brief.|user:Hello|assistant:Yes?"
    assert (response.usage.input_tokens, response.usage.output_tokens) == (42, 10)
    assert response.finish_reason == "stop"


def test_greedy_request_sets_nothing_that_is_drawn(engine: LocalEngine, library: Library) -> None:
    engine.complete(request(temperature=0.0, max_tokens=9, stop=("END",), top_p=0.5))
    assert vars(library.asked[0][1]) == {
        "stop_token_ids": {7},
        "max_new_tokens": 9,
        "stop_strings": {"END"},
        "do_sample": False,
    }


def test_drawn_request_carries_all_settings_and_its_seed(engine: LocalEngine, library: Library) -> None:
    engine.complete(request(temperature=0.7, top_p=0.9, top_k=20, seed=5, frequency_penalty=0.1, presence_penalty=0.2))
    settings = vars(library.asked[0][1])
    assert settings.pop("max_new_tokens") == 100 - len("user:Hello")
    assert settings == {
        "stop_token_ids": {7},
        "stop_strings": set(),
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 20,
        "rng_seed": 5,
        "frequency_penalty": 0.1,
        "presence_penalty": 0.2,
    }


def test_draws_without_a_seed_differ(engine: LocalEngine, library: Library) -> None:
    for _ in range(3):
        engine.complete(request(temperature=0.7))
    assert len({settings.rng_seed for _, settings in library.asked}) == 3


def test_answer_ends_before_the_first_stop_even_within_a_token(engine: LocalEngine, library: Library) -> None:
    library.reply = "1 2 3 [[ ## completed ## ]] rest"
    assert engine.complete(request(stop=("rest", "[[ ## completed"))).message.text == "1 2 3 "


def test_answer_that_reached_its_limit_says_so(engine: LocalEngine, library: Library) -> None:
    library.reason = "LENGTH"
    assert engine.complete(request()).finish_reason == "length"


@pytest.mark.parametrize(
    ("response_format", "schema"),
    [
        (None, None),
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_schema", "name": "a", "schema": {"type": "array"}}, {"type": "array"}),
    ],
)
def test_json_mode_holds_the_answer_to_the_schema(
    response_format: Any, schema: Any, engine: LocalEngine, library: Library
) -> None:
    engine.complete(request(response_format=response_format))
    settings = vars(library.asked[0][1])
    assert ("structured_output_config" in settings) == (schema is not None)
    if schema is not None:
        assert json.loads(settings["structured_output_config"].json_schema) == schema


def test_schema_of_a_pydantic_model_reaches_the_engine_through_dspy(library: Library, path: Path) -> None:
    class Person(pydantic.BaseModel):
        name: str

    lm = local_lm(str(path), cache=False)
    lm("Who?", response_format=Person)
    schema = json.loads(library.asked[0][1].structured_output_config.json_schema)
    assert [*schema["properties"]] == ["name"]
    lm.engine.close()


def test_log_probabilities_are_refused_rather_than_left_out(engine: LocalEngine) -> None:
    with pytest.raises(UnsupportedFeatureError, match="gives no log probabilities"):
        engine.complete(request(logprobs=3))


def test_prompt_longer_than_the_context_says_so(library: Library, path: Path) -> None:
    lm = local_lm(str(path), num_ctx=50, cache=False)
    with pytest.raises(ContextWindowExceededError, match=r"has 105 tokens.*num_ctx=50.*raise `num_ctx`"):
        lm("x" * 100)
    assert library.asked == []
    lm.engine.close()


def test_prompt_larger_than_the_engines_cache_says_so(library: Library, path: Path) -> None:
    library.status = "IGNORED"
    lm = local_lm(str(path), cache=False)
    with pytest.raises(ContextWindowExceededError, match="does not fit into the engine's cache"):
        lm("Hello")
    lm.engine.close()


def test_name_of_the_model_holds_the_hash_of_the_file(path: Path) -> None:
    assert local_lm(str(path)).model == f"local/mine-{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"


def test_engine_is_rebuilt_from_its_state_and_shared_by_copies(path: Path) -> None:
    lm = local_lm(str(path), num_ctx=512, num_threads=3)
    assert lm.copy().engine is lm.engine
    engine = LocalEngine.load_state(lm.engine.dump_state())
    assert (engine.path, engine.num_ctx, engine.num_threads) == (path, 512, 3)
    assert engine.sha256 == lm.engine.sha256


def test_engine_that_is_pickled_or_saved_is_the_one_of_this_process(path: Path) -> None:
    lm = local_lm(str(path), num_ctx=512)
    sent = pickle.loads(cloudpickle.dumps(lm))
    loaded = dspy.LM.load_state(lm.dump_state(), allow_custom_lm_class=True)
    for each in (sent, loaded):
        assert each.engine is lm.engine
        assert each._async_engine_spec.engine is lm.engine
    other = LocalEngine.load_state({**lm.engine.dump_state(), "num_ctx": 256})
    assert other is not lm.engine


def test_engine_that_is_sent_to_another_process_is_made_of_its_state_there(path: Path, tmp_path: Path) -> None:
    (tmp_path / "lm").write_bytes(pickle.dumps([local_lm(str(path), num_ctx=512, num_threads=3)] * 2))
    code = f"""
import pickle
from pathlib import Path
one, other = pickle.loads(Path({str(tmp_path / "lm")!r}).read_bytes())
print(one.engine.path, one.engine.num_ctx, one.engine.num_threads, one.engine is other._async_engine_spec.engine)
"""
    told = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert told.split() == [str(path), "512", "3", "True"]


def test_engine_of_a_file_that_was_exchanged_is_another(path: Path) -> None:
    engine = LocalEngine(path)
    os.utime(path, ns=(1, 1))
    assert LocalEngine.load_state(engine.dump_state()) is not engine


def test_asynchronous_calls_are_answered(library: Library, path: Path) -> None:
    lm = local_lm(str(path), cache=False)

    async def ask() -> list[Any]:
        return await asyncio.gather(*(lm.acall(f"Question {number}") for number in range(3)))

    assert asyncio.run(ask()) == [["the answer"]] * 3
    assert len(library.asked) == 3
    lm.engine.close()


def test_weights_are_loaded_once_with_the_threads_asked_for_and_again_after_closing(
    library: Library, path: Path
) -> None:
    engine = LocalEngine(path, num_threads=3)
    assert library.made == []
    for _ in range(2):
        engine.complete(request())
    assert [(made[0], made[2]) for made in library.made] == [(str(path), {"INFERENCE_NUM_THREADS": 3})]
    assert library.made[0][1].enable_prefix_caching
    engine.close()
    engine.complete(request())
    assert len(library.made) == 2
    engine.close()


def test_weights_are_freed_before_the_interpreter_ends_and_an_engine_may_go_earlier(
    library: Library, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_exit: list[Any] = []
    monkeypatch.setattr(local.atexit, "register", lambda *call: at_exit.append(call))
    kept, gone = LocalEngine(path), LocalEngine(path)
    kept.load()
    gone.load()
    gone.close()
    del gone
    for call, *arguments in at_exit:
        call(*arguments)
    assert kept._batcher is None


@pytest.mark.parametrize("problem", [RuntimeError("Check failed at x.cpp:\n no such tensor"), IndexError("map::at")])
def test_what_the_library_cannot_load_names_the_file_the_reason_and_the_way_out(
    problem: Exception, library: Library, path: Path
) -> None:
    library.problem = problem
    with pytest.raises(ValueError, match=rf"could not load .*mine.gguf: .*({'no such tensor|map::at'}).*Ollama"):
        LocalEngine(path).load()


def test_file_without_a_chat_template_is_refused(library: Library, path: Path) -> None:
    library.template = ""
    with pytest.raises(ValueError, match=r"has no chat template. Take the file of a model that was tuned for chat"):
        LocalEngine(path).load()


def test_too_little_memory_is_told_before_loading(
    library: Library, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**29))
    with pytest.raises(MemoryError, match=r"about 1.0 GB of memory, but 0.5 GB are free. Close other programs"):
        LocalEngine(path).load()
    assert library.made == []


@pytest.mark.parametrize(("limit", "free"), [("max", 8), (str(3 * 2**30), 2), (str(100 * 2**30), 8)])
def test_limit_of_a_container_counts_as_memory(
    limit: str, free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text(f"{3 * 2**29}\n")
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {2**29}\nactive_file 7\n")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=8 * 2**30))
    assert machine.free_memory() == free * 2**30


@pytest.mark.parametrize(("name", "refused"), [("x86_64", True), ("AMD64", True), ("arm64", False)])
def test_processor_without_avx2_is_told_before_loading(
    name: str, refused: bool, library: Library, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine.platform, "machine", lambda: name)
    monkeypatch.setitem(np._core._multiarray_umath.__cpu_features__, "AVX2", False)
    engine = LocalEngine(path)
    if refused:
        with pytest.raises(RuntimeError, match="needs a processor with AVX2, which this one lacks"):
            engine.load()
    else:
        engine.load()
        engine.close()


def test_missing_extra_names_the_command(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino_genai", None)
    with pytest.raises(ImportError, match=r"needs openvino_genai. .*pip install 'dspy-dlpo\[local\]'"):
        LocalEngine(path).load()


def test_answers_are_cached_by_dspy(library: Library, path: Path) -> None:
    lm = local_lm(str(path))
    with dspy.track_usage():
        assert lm("Name a colour.") == lm("Name a colour.")
    assert len(library.asked) == 1
    lm.engine.close()
