"""Wherever rollouts run, it is the same run: a table of what must hold, over all executors."""

from __future__ import annotations

import json
import multiprocessing
import os
import sqlite3
import threading
import time
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.utils.callback import BaseCallback
from dspy.utils.exceptions import LMAuthError

from dspy_dlpo.runtime import remote
from dspy_dlpo.runtime.metric import MetricError
from dspy_dlpo.runtime.remote import WorkerLost
from tests.scripted import Oracle, Program, examples, fields, metric, replying, scripted_lm, world


@pytest.fixture(params=["threads", "processes", "cluster"])
def executor(request: pytest.FixtureRequest) -> Any:
    return None if request.param == "threads" else request.getfixturevalue(request.param)


def compiled(make: Any, student: dspy.Module, executor: Any, lm: Any = None, **arguments: Any) -> Any:
    with dspy.context(lm=lm or scripted_lm()):
        optimizer = make(executor=executor, **arguments)
        return optimizer.compile(student, trainset=examples(12), valset=examples(5, 100)).detailed_results


def comparable(result: Any) -> dict[str, Any]:
    """Return a result without times, and without what it says of the executor."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            left_out = ("seconds", "settings", "log_dir", "started", "time", "duration")
            return {name: clean(each) for name, each in value.items() if name not in left_out}
        return [clean(each) for each in value] if isinstance(value, (list, tuple)) else value

    found = clean(json.loads(json.dumps(result.to_dict(), default=str)))
    return {
        name: found[name] for name in ("candidates", "val_aggregate_scores", "best_idx", "history", "spent", "gain")
    }


def rollouts(folder: Path) -> list[Any]:
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as file:
        rows = file.execute("SELECT candidate, example, repeat, record FROM rollouts ORDER BY 1, 2, 3").fetchall()
    found = []
    for *key, record in rows:
        each = json.loads(record)
        del each["spent"]["seconds"]
        found.append((key, each))
    return found


class TwoSteps(dspy.Module):
    """Asks two predictors at once, then a third."""

    def __init__(self) -> None:
        super().__init__()
        self.note = dspy.Predict("question -> note")
        self.qa = dspy.Predict(Oracle)

    def forward(self, question: str) -> Any:
        items = [(self.note, {"question": f"{question} {part}"}) for part in ("first", "second")]
        dspy.Parallel(num_threads=2, disable_progress_bar=True)(items)
        return self.qa(question=question)


def noting(system: str, user: str) -> str:
    return fields(note=f"noted {user[-80:-40]}") if "`note`" in system else world()(system, user)


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[Any]]:
    """The run in threads, with which the others are compared."""
    from dspy_dlpo import DLPOOptimizer

    folder = tmp_path_factory.mktemp("threads")
    with dspy.context(lm=scripted_lm(noting)):
        optimizer = DLPOOptimizer(metric=metric, num_steps=3, num_threads=2, verbose=False, log_dir=folder)
        tuned = optimizer.compile(TwoSteps(), trainset=examples(12), valset=examples(5, 100))
    return comparable(tuned.detailed_results), rollouts(folder)


def test_run_ledger_and_trace_of_parallel_calls_are_the_same(
    make: Any, executor: Any, tmp_path: Path, reference: tuple[dict[str, Any], list[Any]]
) -> None:
    result = compiled(make, TwoSteps(), executor, scripted_lm(noting), num_steps=3, log_dir=tmp_path)
    assert (comparable(result), rollouts(tmp_path)) == reference
    calls = [each["calls"] for key, each in rollouts(tmp_path) if key[1].startswith("train")]
    assert {len(each) for each in calls} == {3}


def test_resumed_run_asks_for_no_rollout_again(make: Any, executor: Any, tmp_path: Path) -> None:
    first = compiled(make, dspy.Predict(Oracle), executor, num_steps=3, log_dir=tmp_path)
    before = rollouts(tmp_path)
    again = compiled(make, dspy.Predict(Oracle), Refusing(), num_steps=3, log_dir=tmp_path)
    assert comparable(again) == comparable(first)
    assert rollouts(tmp_path) == before


class Refusing:
    """An executor that is asked for nothing."""

    def submit(self, function: Any, /, *args: Any) -> Any:
        raise AssertionError("a rollout was asked for")


@pytest.mark.parametrize("limits", [{"max_metric_calls": 60}, {"max_lm_calls": 60}, {"max_tokens": 60_000}])
def test_limits_hold(make: Any, executor: Any, limits: dict[str, int]) -> None:
    result = compiled(make, dspy.Predict(Oracle), executor, **limits)
    name, limit = next(iter(limits.items()))
    spent = {
        "max_metric_calls": result.spent.metric_calls,
        "max_lm_calls": result.spent.lm_calls - 2,
        "max_tokens": result.spent.tokens - 2 * 2000,
    }
    assert result.spent.metric_calls > 20
    assert spent[name] <= limit


def raising(example: Any, prediction: Any) -> float:
    if "2:" in example.question:
        raise KeyError("a typo")
    return metric(example, prediction).score


def test_errors_of_the_metric_fail_their_example_alone(make: Any, executor: Any, tmp_path: Path) -> None:
    compiled(make, dspy.Predict(Oracle), executor, metric=raising, num_steps=1, log_dir=tmp_path)
    failed = {each["error"] for key, each in rollouts(tmp_path) if each["error"]}
    assert failed == {"The metric raised KeyError: 'a typo'"}


def no_score(example: Any, prediction: Any) -> Any:
    return "good"


def test_metric_that_returns_no_score_ends_the_run(make: Any, executor: Any) -> None:
    with pytest.raises(MetricError, match="`metric` returned 'good' for trainset"):
        compiled(make, dspy.Predict(Oracle), executor, metric=no_score)


def unauthorised(system: str, user: str) -> str:
    raise LMAuthError("no key", model="m", status=401)


def test_error_that_no_retry_mends_ends_the_run_with_its_own_type(make: Any, executor: Any) -> None:
    with pytest.raises(LMAuthError, match="no key") as caught:
        compiled(make, dspy.Predict(Oracle), executor, scripted_lm(unauthorised))
    assert caught.value.status == 401


def slow(example: Any, prediction: Any) -> float:
    if int(example.question.partition(":")[0]) % 4 == 3:
        time.sleep(30)
    return metric(example, prediction).score


def test_rollout_that_takes_too_long_is_lost_and_its_calls_are_charged(
    make: Any, executor: Any, tmp_path: Path
) -> None:
    arguments = {"num_steps": 1, "timeout": 0.5, "max_lost_share": 1.0, "log_dir": tmp_path}
    compiled(make, dspy.Predict(Oracle), executor, metric=slow, **arguments)
    lost = [(key[1], each["error"], each["spent"]["lm_calls"]) for key, each in rollouts(tmp_path) if each["lost"]]
    assert lost
    assert {name for name, *_ in lost} <= {"train:3", "train:7", "train:11", "val:3"}
    assert {(error, calls) for _, error, calls in lost} == {("abandoned after 0.5 seconds", 1)}


def by_usage(example: Any, prediction: Any) -> dspy.Prediction:
    ((model, usage),) = prediction.get_lm_usage().items()
    return dspy.Prediction(score=0.5, feedback=f"{model} used {usage['prompt_tokens'] > 0}")


def test_usage_models_of_predictors_and_settings_of_dspy_reach_the_rollout(
    make: Any, executor: Any, tmp_path: Path
) -> None:
    student = Program(_with_settings, qa=dspy.Predict(Oracle))
    student.qa.lm = scripted_lm(replying(), model="scripted/own")
    lm = scripted_lm(replying(requirements="Be brief."))
    with dspy.context(track_usage=True, adapter=dspy.JSONAdapter(), max_trace_size=77):
        compiled(make, student, executor, lm, metric=by_usage, num_steps=1, log_dir=tmp_path)
    assert {each["feedback"] for _, each in rollouts(tmp_path)} == {"scripted/own used True"}


def _with_settings(self: Any, question: str) -> Any:
    assert (type(dspy.settings.adapter).__name__, dspy.settings.max_trace_size) == ("JSONAdapter", 77)
    return self.qa(question=question)


class Writes(BaseCallback):
    """Leaves a file for each call of a predictor."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_module_end(self, call_id: str, outputs: Any, exception: Any = None) -> None:
        (self.folder / call_id).touch()


def test_callbacks_are_called_where_rollouts_run(make: Any, executor: Any, tmp_path: Path) -> None:
    with dspy.context(callbacks=[Writes(tmp_path)]):
        result = compiled(make, dspy.Predict(Oracle), executor, num_steps=1)
    assert len([*tmp_path.iterdir()]) >= result.spent.metric_calls


async def awaited(example: Any, prediction: Any) -> Any:
    return metric(example, prediction)


class Async(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qa = dspy.Predict(Oracle)

    async def aforward(self, question: str) -> Any:
        return await self.qa.acall(question=question)


def test_asynchronous_program_and_metric_run(make: Any, executor: Any) -> None:
    result = compiled(make, Async(), executor, metric=awaited, num_steps=2)
    assert result.val_aggregate_scores[result.best_idx] > result.val_aggregate_scores[0]


# What cannot be sent.


def test_what_cannot_be_pickled_is_named_before_the_first_call(make: Any, processes: Any) -> None:
    lm = scripted_lm()
    student = Program(lambda self, question: self.qa(question=question), qa=Oracle)
    student.lock = threading.Lock()
    with pytest.raises(TypeError, match=r"but the program\.lock cannot be pickled \(TypeError: cannot pickle '_thread"):
        compiled(make, student, processes, lm)
    lock = threading.Lock()
    with pytest.raises(TypeError, match="but `metric` cannot be pickled"):
        compiled(make, dspy.Predict(Oracle), processes, lm, metric=lambda example, prediction: bool(lock))
    assert not lm.engine.log


@pytest.mark.parametrize("wrong", [8, "dask", object()])
def test_what_is_no_executor_is_refused(make: Any, wrong: Any) -> None:
    with pytest.raises(TypeError, match="`executor` must have a method `submit`"):
        make(executor=wrong)


def test_worker_of_another_version_ends_the_run(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere(ThreadPoolExecutor):
        def submit(self, function: Any, /, *args: Any) -> Any:
            key, content, wanted, task = args
            return super().submit(function, key, content, {**wanted, "dspy": "2.0.0"}, task)

    with Elsewhere(2) as pool, pytest.raises(RuntimeError, match=r"other versions: dspy 3\.\S+ there, 2\.0\.0 here"):
        compiled(make, dspy.Predict(Oracle), pool)


def test_big_job_is_sent_only_to_workers_that_lack_it(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []

    class Counting(ThreadPoolExecutor):
        def submit(self, function: Any, /, *args: Any) -> Any:
            sent.append(len(args[1] or b""))
            return super().submit(function, *args)

    monkeypatch.setattr(remote, "_ALWAYS_SENT", 10)
    with Counting(1) as pool:
        compiled(make, dspy.Predict(Oracle), pool, num_threads=1, num_steps=1)
    assert sum(size > 0 for size in sent) == 1
    assert len(sent) > 10


# Workers that die.


class Dying(ThreadPoolExecutor):
    """Loses the worker of each task as often as told, and of others never."""

    def __init__(self, times: int) -> None:
        super().__init__(2)
        self.times, self.seen = times, dict[str, int]()

    def submit(self, function: Any, /, *args: Any) -> Any:
        task = args[-1]
        name = f"{task.candidate.id} {task.name}"
        self.seen[name] = self.seen.get(name, 0) + 1
        if task.name.endswith(("1", "4")) and self.seen[name] <= self.times:
            future: Future[Any] = Future()
            future.set_exception(WorkerLost("the node is gone"))
            return future
        return super().submit(function, *args)


def test_rollout_whose_worker_dies_is_tried_again_and_the_run_is_the_same(make: Any) -> None:
    calm = compiled(make, dspy.Predict(Oracle), None, num_steps=2)
    with Dying(2) as pool:
        assert comparable(compiled(make, dspy.Predict(Oracle), pool, num_steps=2)) == comparable(calm)


def test_rollout_whose_worker_dies_three_times_is_lost(make: Any, tmp_path: Path) -> None:
    with Dying(9) as pool:
        result = compiled(make, dspy.Predict(Oracle), pool, num_steps=1, max_lost_share=1.0, log_dir=tmp_path)
    found = rollouts(tmp_path)
    lost = [(key[1], each["error"]) for key, each in found if each["lost"]]
    assert {name for name, _ in lost} == {key[1] for key, _ in found if key[1].endswith(("1", "4"))}
    assert {error for _, error in lost} == {"the worker died 3 times: the node is gone"}
    assert result.history[-1].lost == len(lost)


def dying(example: Any, prediction: Any) -> float:
    os._exit(3)


def test_pool_of_processes_that_breaks_ends_the_run_with_the_way_to_go_on(make: Any) -> None:
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(1, mp_context=context) as pool,
        pytest.raises(RuntimeError, match=r"A worker process of `executor` has died.*With a `log_dir`"),
    ):
        compiled(make, dspy.Predict(Oracle), pool, metric=dying)
