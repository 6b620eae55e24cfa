"""The machinery on a real language model."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dspy
import pydantic
import pytest
from dspy.utils.exceptions import ContextWindowExceededError

from dspy_dlpo import DLPOOptimizer, Tuning
from dspy_dlpo.benchmarks.compare import Setting, compare
from dspy_dlpo.benchmarks.tasks.registry import load_task
from dspy_dlpo.local.engine import local_lm

pytestmark = [pytest.mark.local_model, pytest.mark.timeout(600)]

FRUITS = ["apples", "pears", "plums", "figs", "limes", "melons"]


@pytest.fixture(scope="module")
def lm() -> Iterator[dspy.LM]:
    model = local_lm(max_tokens=60, num_ctx=2048)
    yield model
    model.engine.close()


class CountAndReport(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.count = dspy.Predict("sentence -> count")
        self.report = dspy.Predict("sentence, count -> report")

    def forward(self, sentence: str) -> dspy.Prediction:
        count = self.count(sentence=sentence).count
        return self.report(sentence=sentence, count=count)


def basket(number: int) -> dspy.Example:
    fruit = FRUITS[number % len(FRUITS)]
    example = dspy.Example(sentence=f"There are {number} {fruit} in the basket.", expected=f"{fruit.upper()}: {number}")
    return example.with_inputs("sentence")


def test_two_predictor_program_is_compiled_counted_and_saved(lm: dspy.LM, tmp_path: Path) -> None:
    calls = []

    def metric(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> dspy.Prediction:
        calls.append(example)
        right = example.expected in prediction.report
        feedback = "" if right else "The report is the fruit in capital letters, a colon and the number."
        return dspy.Prediction(score=right, feedback=feedback)

    trainset, valset = [basket(number) for number in range(2, 6)], [basket(number) for number in range(10, 12)]
    with dspy.context(lm=lm):
        program = CountAndReport()
        optimizer = DLPOOptimizer(
            metric=metric, num_steps=1, tuning=Tuning(batch_size=2, max_trial_examples=2), num_threads=8, verbose=False
        )
        optimized = optimizer.compile(program, trainset=trainset, valset=valset)
        result = optimized.detailed_results
        assert result.total_metric_calls == len(calls)
        assert result.spent.lm_calls >= 2 * result.total_metric_calls
        assert result.spent.output_tokens > 0
        scored = dspy.Evaluate(devset=valset, metric=metric, num_threads=8, display_progress=False)(optimized)
        assert scored.score / 100 == pytest.approx(result.val_aggregate_scores[result.best_idx])

        optimized.save(tmp_path / "program.json")
        loaded = CountAndReport()
        loaded.load(tmp_path / "program.json")
        sentence = valset[0].sentence
        assert loaded(sentence=sentence).report == optimized(sentence=sentence).report
    for name, predictor in loaded.named_predictors():
        assert predictor.signature.instructions == result.best_candidate[name]


def test_prompts_of_many_threads_are_answered_together_each_with_its_own_answer(lm: dspy.LM) -> None:
    def ask(number: int) -> str:
        return str(lm(f"Say only the number {number}.", cache=False, max_tokens=5)[0])

    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(ask, range(24)))
    assert all(str(number) in answer for number, answer in enumerate(answers))
    assert lm.history[-1]["usage"]["completion_tokens"] <= 5


def test_stop_and_temperature_are_honoured(lm: dspy.LM) -> None:
    counted = lm("Count from 1 to 9 with spaces between.", stop=["5"], cache=False)[0]
    assert "4" in counted and "5" not in counted
    options = {"temperature": 1.0, "max_tokens": 12, "cache": False}
    drawn = {lm("Make up a word.", **options)[0] for _ in range(3)}
    assert len(drawn) > 1
    assert len({lm("Make up a word.", **options, top_k=1)[0] for _ in range(3)}) == 1


def test_json_mode_gives_what_the_schema_asks_for(lm: dspy.LM) -> None:
    class Person(pydantic.BaseModel):
        name: str
        age: int

    answer = lm("Introduce Anna, who is 30 years old.", response_format=Person, cache=False)[0]
    assert Person.model_validate_json(answer) == Person(name="Anna", age=30)


def test_cancelling_two_dozen_long_answers_returns_at_once_and_frees_the_slots(lm: dspy.LM) -> None:
    ended: list[float] = []

    def ask(number: int) -> None:
        with pytest.raises(dspy.LMError, match="cancelled"):
            lm(f"Tell a long story of the year {1900 + number}.", cache=False, max_tokens=1000)
        ended.append(time.monotonic())

    with ThreadPoolExecutor(24) as pool:
        asked = [pool.submit(ask, number) for number in range(24)]
        while lm.engine.in_flight < 24:
            time.sleep(0.1)
        began = time.monotonic()
        lm.engine.cancel()
        for each in asked:
            each.result()
    assert len(ended) == 24
    assert max(ended) - began < 2
    assert lm("Say only the word yes.", cache=False, max_tokens=3)[0]


def test_equal_request_is_answered_from_the_cache_of_dspy(lm: dspy.LM) -> None:
    with dspy.track_usage() as usage:
        first = lm("Name a colour.")
        assert lm("Name a colour.") == first
    assert len(next(iter(usage.usage_data.values()))) == 1


def test_prompt_longer_than_the_context_says_so(lm: dspy.LM) -> None:
    with pytest.raises(ContextWindowExceededError, match="raise `num_ctx`"):
        lm("word " * 5000)


def test_saved_program_brings_its_model_back(lm: dspy.LM, tmp_path: Path) -> None:
    program = dspy.Predict("question -> answer")
    program.lm = lm
    program.save(tmp_path / "program.json")
    loaded = dspy.Predict("question -> answer")
    loaded.load(tmp_path / "program.json", allow_unsafe_lm_state=True)
    assert loaded.lm.model == lm.model
    assert loaded.lm.engine.path == lm.engine.path


def test_slice_of_the_comparison_runs_on_the_model_and_keeps_its_results(lm: dspy.LM, tmp_path: Path) -> None:
    counts = [
        f"I have {number} {FRUITS[number % 6]} and {number % 3 + 2} {FRUITS[(number + 1) % 6]}."
        for number in range(2, 18)
    ]
    rows = [
        {
            "id": f"own-{number}",
            "question": f"{text} How many pieces of fruit is that?",
            "answer": str(sum(map(int, re.findall(r"\d+", text)))),
            "subtask": "object_counting",
        }
        for number, text in enumerate(counts)
    ]
    (tmp_path / "bbh").mkdir()
    (tmp_path / "bbh" / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def setup(seed: int) -> Setting:
        task = load_task("bbh/object_counting", data_dir=tmp_path, seed=seed, sizes=(6, 2, 2))
        return Setting(task, lm.copy(max_tokens=24), lm.copy(max_tokens=60))

    cells = compare(
        {"counting": setup},
        ["none", "dlpo"],
        folder=tmp_path,
        num_threads=8,
        max_metric_calls=30,
        seeds=[0],
        curves=False,
        verbose=False,
    )
    assert [cell.failed or cell.skipped for cell in cells] == ["", ""]
    assert all(cell.score is not None and 0 <= cell.score <= 1 and len(cell.scores) == 2 for cell in cells)
    assert 0 < cells[1].metric_calls <= 30 and cells[1].lm_calls > 0
    kept = (tmp_path / "cells.jsonl").read_text()
    assert kept.count("\n") == 2
    assert not any(row["question"] in kept for row in rows)
