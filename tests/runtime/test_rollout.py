"""What a rollout counts, hands to the metric and keeps, whatever threads and loops the program has."""

from __future__ import annotations

import asyncio
import base64
import gc
import os
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_dlpo.core.records import Candidate, Rollout
from dspy_dlpo.runtime.inherit import threads_inherit_context
from dspy_dlpo.runtime.metric import Metric
from dspy_dlpo.runtime.prices import Prices
from dspy_dlpo.runtime.program import Student
from dspy_dlpo.runtime.rollout import RolloutSettings, Task, rollout
from tests.scripted import Oracle, Program, examples, fields, metric, replying, scripted_lm

EXAMPLE = examples(1)[0]


def run(program: dspy.Module, score: Any = metric, name: str = "train:0", script: Any = None) -> Rollout:
    settings = RolloutSettings(0.0, Prices({"scripted/model": (1.0, 1.0)}))
    with dspy.context(lm=scripted_lm(script)):
        return rollout(Student(program), Task(Candidate({}), name, EXAMPLE), Metric(score, (0.0, 1.0)), settings)


def in_threads(self: Any, question: str) -> Any:
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(self.qa(question=question))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found[0]


def in_pool(self: Any, question: str) -> Any:
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: self.qa(question=question), range(3)))
    return found[0]


SHARED = ThreadPoolExecutor(2)


def in_shared_pool(self: Any, question: str) -> Any:
    found = [each.result() for each in [SHARED.submit(self.qa, question=question) for _ in range(3)]]
    return found[0]


def in_timer(self: Any, question: str) -> Any:
    found: list[Any] = []
    timers = [threading.Timer(0, lambda: found.append(self.qa(question=question))) for _ in range(3)]
    for timer in timers:
        timer.start()
    for timer in timers:
        timer.join()
    return found[0]


def in_loop(self: Any, question: str) -> Any:
    async def gathered() -> Any:
        return (await asyncio.gather(*(self.qa.acall(question=question) for _ in range(3))))[0]

    return asyncio.run(gathered())


def in_nested_threads(self: Any, question: str) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(in_pool(self, question)))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.parametrize("forward", [in_threads, in_pool, in_shared_pool, in_timer, in_loop, in_nested_threads])
def test_calls_in_threads_of_the_programs_own_are_counted_and_traced(forward: Any) -> None:
    found = [run(Program(forward, qa=dspy.Predict(Oracle))) for _ in range(2)]
    for each in found:
        assert (each.spent.lm_calls, each.error) == (3, "")
        assert each.spent.cost
        assert [call.predictor for call in each.calls] == ["qa"] * 3


def test_limit_of_lm_calls_holds_for_a_program_with_threads_of_its_own(make: Any) -> None:
    lm = scripted_lm()
    with dspy.context(lm=lm):
        student = Program(in_pool, qa=dspy.Predict(Oracle))
        result = make(max_lm_calls=20).compile(student, trainset=examples(12), valset=examples(2, 100)).detailed_results
    assert result.spent.lm_calls == len(lm.engine.log) <= 20 + 2 * 3
    assert "max_lm_calls" in result.stopped


def test_threads_started_elsewhere_keep_their_own_context_while_a_rollout_runs() -> None:
    seen: list[Any] = []
    start, submit = threading.Thread.start, ThreadPoolExecutor.submit
    with dspy.context(num_threads=77), threads_inherit_context(), threads_inherit_context():
        inside = threading.Thread(target=lambda: seen.append(dspy.settings.num_threads))
        inside.start()
        inside.join()
    assert seen == [77]
    assert (threading.Thread.start, ThreadPoolExecutor.submit) == (start, submit)
    with dspy.context(num_threads=77):
        outside = threading.Thread(target=lambda: seen.append(dspy.settings.num_threads))
        outside.start()
        outside.join()
    assert seen[1] != 77


def test_calls_that_a_cancelled_parallel_leaves_behind_are_counted_and_traced_alike_each_time() -> None:
    """Its items fail at once but one, which is under way when the program goes on."""

    def script(system: str, user: str) -> str:
        if "item 0" in user:
            time.sleep(0.2)
            return fields(answer="late")
        return "no fields"

    def forward(self: Any, question: str) -> Any:
        items = [(self.qa, {"question": f"item {number}"}) for number in range(16)]
        try:
            return dspy.Parallel(num_threads=16, max_errors=15, disable_progress_bar=True)(items)[0]
        except Exception:  # noqa: BLE001 - DSPy raises nothing more special.
            return dspy.Prediction(answer="early")

    found = [run(Program(forward, qa=dspy.Predict(Oracle)), script=script) for _ in range(4)]
    assert {(len(each.calls), each.num_calls, each.spent.lm_calls) for each in found} == {(16, 16, 31)}
    assert all(each.calls == found[0].calls for each in found)


# Usage.


@pytest.mark.parametrize("name", ["train:0", "val:0"])
def test_metric_sees_the_usage_that_dspy_tracks(name: str) -> None:
    seen: list[Any] = []

    def watching(example: Any, prediction: Any, trace: Any = None) -> float:
        seen.append(prediction.get_lm_usage())
        return 1.0

    program = Program(lambda self, question: (self.qa(question=question), self.qa(question=question))[1], qa=Oracle)
    with dspy.context(track_usage=True):
        found = run(program, watching, name)
        with dspy.context(lm=scripted_lm()):
            plain = program(question=EXAMPLE.question).get_lm_usage()
    (usage,) = seen
    assert usage == plain
    assert usage["scripted/model"]["prompt_tokens"] == found.spent.input_tokens > 0


def test_prediction_has_no_usage_where_it_is_not_tracked() -> None:
    seen: list[Any] = []
    run(dspy.Predict(Oracle), lambda example, prediction: seen.append(prediction.get_lm_usage()) or 1.0)
    assert seen == [None]


# Asynchronous programs and metrics.


async def awaited(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> dspy.Prediction:
    await asyncio.sleep(0)
    judged = await dspy.Predict("answer -> verdict").acall(answer=prediction.answer)
    return dspy.Prediction(score=0.5, feedback=f"The judge says {judged.verdict}.")


class Judge(dspy.Module):
    async def aforward(self, example: Any, prediction: Any, trace: Any = None) -> float:
        return (await awaited(example, prediction)).score


class Callable:
    async def __call__(self, example: Any, prediction: Any) -> float:
        return (await awaited(example, prediction)).score


class Client:
    """Works in one event loop only, as the pool of an HTTP client does."""

    loop: Any = None

    async def get(self) -> None:
        self.loop = self.loop or asyncio.get_running_loop()
        if self.loop is not asyncio.get_running_loop():
            raise RuntimeError("bound to a different event loop")


class Async(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.client = Client()
        self.qa = dspy.Predict(Oracle)

    async def aforward(self, question: str) -> Any:
        await self.client.get()
        found = await asyncio.gather(self.qa.acall(question=question), self.qa.acall(question=question))
        return found[1]


@pytest.mark.parametrize("score", [awaited, Judge(), Callable()], ids=["function", "module", "object"])
def test_metric_that_is_awaited_is_metered(score: Any) -> None:
    found = run(dspy.Predict(Oracle), score, script=replying(verdict="so"))
    assert (found.score, found.spent.lm_calls, found.error) == (0.5, 2, "")
    assert len(found.calls) == 1  # The judge's call is not the program's.
    assert found.feedback in ("", "The judge says so.")


def test_program_with_aforward_alone_runs_in_one_event_loop_with_trace_and_metering(make: Any) -> None:
    found = run(Async())
    assert (found.spent.lm_calls, found.error) == (2, "")
    assert [call.predictor for call in found.calls] == ["qa", "qa"]
    lm = scripted_lm()
    with dspy.context(lm=lm):
        result = make(max_lm_calls=60).compile(Async(), trainset=examples(12), valset=examples(2, 100)).detailed_results
    assert result.val_aggregate_scores[result.best_idx] > result.val_aggregate_scores[0]
    assert result.spent.lm_calls == len(lm.engine.log)


def test_async_tools_run_in_an_async_agent(make: Any) -> None:
    called: list[str] = []

    async def look_up(question: str) -> str:
        """Look it up."""
        await asyncio.sleep(0)
        called.append(question)
        return "nothing"

    class Agent(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.agent = dspy.ReAct(Oracle, tools=[look_up], max_iters=2)

        async def aforward(self, question: str) -> Any:
            return await self.agent.acall(question=question)

    script = replying(next_thought="So.", next_tool_name="look_up", next_tool_args='{"question": "it"}', reasoning="")
    found = run(Agent(), script=script)
    assert (called, found.error) == (["it", "it"], "")
    assert {call.predictor for call in found.calls} == {"agent.react", "agent.extract.predict"}


async def _compile_inside_a_loop(make: Any) -> None:
    with dspy.context(lm=scripted_lm()):
        tuned = make(metric=awaited_world).compile(Async(), trainset=examples(12), valset=examples(2, 100))
    assert tuned.detailed_results.history


async def awaited_world(example: Any, prediction: Any) -> Any:
    return metric(example, prediction)


def test_compile_works_inside_a_running_event_loop(make: Any) -> None:
    asyncio.run(_compile_inside_a_loop(make))


def test_acompile_leaves_the_event_loop_free(make: Any) -> None:
    ticks: list[int] = []

    async def tick() -> None:
        while True:
            ticks.append(1)
            await asyncio.sleep(0.005)

    async def both() -> dspy.Module:
        clock = asyncio.create_task(tick())
        with dspy.context(lm=scripted_lm()):
            tuned = await make().acompile(dspy.Predict(Oracle), examples(12), valset=examples(2, 100))
        clock.cancel()
        return tuned

    tuned = asyncio.run(both())
    assert tuned.detailed_results.history
    assert len(ticks) > 5


@pytest.mark.parametrize("begun", [0, 4])
def test_cancelled_acompile_keeps_what_is_in_flight_and_goes_on_later(make: Any, tmp_path: Path, begun: int) -> None:
    async def slowly(example: Any, prediction: Any) -> Any:
        await asyncio.sleep(0.05)
        return metric(example, prediction)

    arguments: dict[str, Any] = {"metric": slowly, "num_steps": 3, "log_dir": tmp_path}

    first = scripted_lm()

    async def cancelled() -> None:
        with dspy.context(lm=first):
            coroutine = make(**arguments).acompile(dspy.Predict(Oracle), examples(12), valset=examples(2, 100))
            task = asyncio.create_task(coroutine)
            while len(first.engine.log) < begun:
                await asyncio.sleep(0.01)
            task.cancel()
            await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled())
    assert len(first.engine.log) < 20
    lm = scripted_lm()
    with dspy.context(lm=lm):
        tuned = make(**arguments).compile(dspy.Predict(Oracle), examples(12), valset=examples(2, 100))
    assert tuned.detailed_results.stopped == "3 steps are done"
    assert len(lm.engine.log) + len(first.engine.log) == tuned.detailed_results.spent.lm_calls


# Memory.


class See(dspy.Signature):
    """Say what it is."""

    photo: dspy.Image = dspy.InputField()
    answer: str = dspy.OutputField()


class Read(dspy.Signature):
    """Say what it is."""

    page: str = dspy.InputField()
    answer: str = dspy.OutputField()


def photo(number: int) -> dspy.Example:
    data = base64.b64encode(os.urandom(150_000)).decode()
    return dspy.Example(photo=dspy.Image(f"data:image/png;base64,{data}"), answer="x").with_inputs("photo")


def page(number: int) -> dspy.Example:
    return dspy.Example(page=f"{number} of all. " * 13_000, answer="x").with_inputs("page")


@pytest.mark.parametrize(("signature", "made"), [(See, photo), (Read, page)], ids=["photos", "pages"])
def test_run_keeps_no_copies_of_big_inputs(make: Any, tmp_path: Path, signature: Any, made: Any) -> None:
    trainset, valset = [made(index) for index in range(10)], [made(index) for index in range(10, 14)]
    lm = scripted_lm(replying(requirements="Be brief."))
    lm.engine.log = _Forgetful()
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    with dspy.context(lm=lm):
        score = dspy.Prediction(score=0.0, feedback="Wrong.")
        optimizer = make(metric=lambda example, prediction: score, num_steps=2, log_dir=tmp_path)
        tuned = optimizer.compile(dspy.Predict(signature), trainset=trainset, valset=valset)
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert tuned.detailed_results.spent.lm_calls > 30
    assert grown < 14 * 200_000 / 2
    assert len(lm.history) > 20  # DSPy's histories are there, with what fits on a page.
    assert "Say what it is." in str(lm.history[0]["messages"])


class _Forgetful(list[Any]):
    def append(self, item: Any) -> None: ...
