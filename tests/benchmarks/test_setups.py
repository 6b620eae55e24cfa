from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import dspy
import pytest
from dspy.lm15 import Config, Message, Request, Response, Usage

from dspy_dlpo.benchmarks import setups
from dspy_dlpo.benchmarks.setups import _Once, setup_named
from dspy_dlpo.local.engine import LocalEngine
from tests.local.files import write_gguf


def test_public_task_has_the_models_and_the_rows_it_was_given_and_survives_pickling(tmp_path: Path) -> None:
    (tmp_path / "gsm8k").mkdir()
    for part in ("train", "test"):
        rows = [
            {"id": f"{part}{each}", "question": f"{part}: {each} + 1?", "answer": str(each + 1)} for each in range(30)
        ]
        (tmp_path / "gsm8k" / f"{part}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    setup = pickle.loads(pickle.dumps(setup_named("gsm8k", "openai/small", "openai/large", tmp_path)))
    setting = setup(0)
    assert setting.prompt_lm is not None
    assert (setting.lm.model, setting.prompt_lm.model, setting.score) == ("openai/small", "openai/large", None)
    assert all(each.question.startswith("train") for each in setting.task.trainset)
    assert [each.question for each in setup(1).task.trainset] != [each.question for each in setting.task.trainset]


@pytest.mark.parametrize(("num_workers", "cores"), [(1, 8), (3, 2), (16, 1)])
def test_processes_side_by_side_share_the_cores_for_the_local_model(
    num_workers: int, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []

    def local(max_tokens: int, cores: int) -> dspy.LM:
        given.append(cores)
        return dspy.LM("openai/none")

    monkeypatch.setattr(setups, "_local", local)
    monkeypatch.setattr(setups, "load_task", lambda *args, **kwargs: None)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    setup_named("gsm8k", "local", None, None, num_workers=num_workers)(0)
    assert given == [cores, cores]


def test_simulated_task_knows_its_score_without_running() -> None:
    setting = setup_named("simulated/easy", None, None, None)(0)
    assert setting.score is not None
    assert 0 < setting.score(setting.task.program) < 1


def test_both_roles_of_the_local_model_share_one_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "model.gguf")
    monkeypatch.setattr(setups, "weights_path", lambda name: path)
    monkeypatch.setattr(setups, "load_task", lambda *args, **kwargs: None)
    setups._engine.cache_clear()
    one, other = (setup_named("gsm8k", "local", None, None)(seed) for seed in (0, 1))
    setups._engine.cache_clear()
    assert one.prompt_lm is not None
    assert one.lm.engine is one.prompt_lm.engine is other.lm.engine
    assert one.lm.kwargs["max_tokens"] < one.prompt_lm.kwargs["max_tokens"]


@pytest.mark.parametrize(("temperature", "computed"), [(0.0, 2), (None, 2), (1.0, 3)])
def test_local_model_computes_an_answer_once_unless_it_is_drawn(
    temperature: float | None, computed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Request] = []

    def complete(engine: LocalEngine, request: Request) -> Response:
        asked.append(request)
        return Response(
            id=None, model="m", message=Message.assistant(str(len(asked))), finish_reason="stop", usage=Usage()
        )

    monkeypatch.setattr(LocalEngine, "complete", complete)
    path = write_gguf(tmp_path / "model.gguf")
    engine = _Once(path, num_threads=1)
    config = Config(temperature=temperature)
    answers = [
        engine.complete(Request(model="m", messages=(Message.user(text),), config=config)).message.text
        for text in ("one", "two", "one")
    ]
    assert len(asked) == computed
    assert answers == (["1", "2", "1"] if computed == 2 else ["1", "2", "3"])
