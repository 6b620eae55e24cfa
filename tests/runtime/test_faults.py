from __future__ import annotations

import json
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count, cycle
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.lm15 import ContextLengthError, ProviderError, TransportError

from dspy_dlpo.benchmarks.simulation.scripted import Script
from dspy_dlpo.core.records import Candidate
from dspy_dlpo.runtime.budget import Budget, BudgetSpent
from dspy_dlpo.runtime.data import prepare
from dspy_dlpo.runtime.forward import Forward
from dspy_dlpo.runtime.ledger import Ledger
from dspy_dlpo.runtime.metric import Metric
from dspy_dlpo.runtime.program import Student
from tests.scripted import CountingMetric, Oracle, examples, fields, metric, role_of, scripted_lm, world

KINDS = ("429", "500", "cut", "slow", "broken")


class FlakyServer(ThreadingHTTPServer):
    """Speaks OpenAI's protocol and plays the world; a share of the requests, drawn from their text, goes wrong."""

    daemon_threads = True

    def __init__(self, share: float) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.share = share
        self.seen: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.stopping = threading.Event()

    def fault(self, body: str) -> str:
        with self.lock:
            self.seen[body] += 1
            draw = sha256(f"{self.seen[body]} {body}".encode()).digest()
            kind = KINDS[draw[1] % len(KINDS)] if draw[0] < self.share * 256 else ""
            self.faults[kind] += 1
        return kind

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that hung up."""


class Handler(BaseHTTPRequestHandler):
    server: FlakyServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        messages = json.loads(body)["messages"]
        fault = self.server.fault(json.dumps(messages))
        if fault == "cut":
            self.close_connection = True
            return
        if fault == "slow":
            self.server.stopping.wait(0.4)
        if fault in ("429", "500"):
            self.reply(int(fault), '{"error": {"message": "not now", "type": "server_error"}}')
            return
        text = world()(messages[0]["content"], messages[-1]["content"])
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        reply = json.dumps({"id": "1", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage})
        self.reply(200, reply[: len(reply) // 2] if fault == "broken" else reply)

    def reply(self, status: int, body: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@contextmanager
def flaky(share: float, num_retries: int) -> Iterator[FlakyServer]:
    with FlakyServer(share) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/v1"
        lm = dspy.LM(
            "openai/m", api_base=address, api_key="sk-very-secret", cache=False, num_retries=num_retries, timeout=0.2
        )
        with dspy.context(lm=lm):
            yield server
        server.stopping.set()
        lm.close()
        server.shutdown()


def compile_with(share: float, num_retries: int, make: Any, log_dir: Path) -> tuple[dspy.Module, FlakyServer]:
    with flaky(share, num_retries) as server:
        optimizer = make(
            num_steps=3, num_threads=32, batch_size=6, max_trial_examples=32, log_dir=log_dir, verbose=True
        )
        return optimizer.compile(dspy.Predict(Oracle), trainset=examples(30), valset=examples(16, 100)), server


def test_flaky_server_changes_nothing_with_retries_and_costs_examples_without(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dspy.clients.execution._delay", lambda error, attempt: 0.01)  # DSPy's back-off begins at 1 s.
    calm, _ = compile_with(0.0, 6, make, tmp_path / "calm")
    retried, server = compile_with(0.2, 6, make, tmp_path / "retried")
    assert {*KINDS} <= server.faults.keys()
    assert retried.signature.instructions == calm.signature.instructions
    trials = [[record.trial for record in each.detailed_results.history] for each in (calm, retried)]
    assert trials[0] == trials[1]
    assert retried.detailed_results.history[-1].lost == 0
    assert "lost" not in capsys.readouterr().err

    lossy, _ = compile_with(0.2, 0, make, tmp_path / "lossy")
    lost = lossy.detailed_results.lost
    assert lost > 0
    assert f"{lost} rollouts lost" in capsys.readouterr().err
    assert b"sk-very-secret" not in b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def failing(error: Exception, when: Callable[[int, str], bool]) -> Script:
    """Play the world, but raise in those calls of the program, which are counted from 0."""
    number = count()

    def answer(system: str, user: str) -> str:
        if role_of(system) == "program" and when(next(number), user):
            raise error
        return world()(system, user)

    return answer


def test_lost_rollout_is_no_failing_example_and_no_pair(make: Any) -> None:
    lm = scripted_lm(failing(TransportError("reset"), lambda number, user: number in (2, 30)))
    with dspy.context(lm=lm):
        result = make(num_steps=1, num_threads=1).compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results
    (record,) = result.history
    assert record.lost == 2
    assert len(record.minibatch) == lm.engine.count("critic") == 7
    assert record.loss == 1
    assert record.trial is not None
    assert set(record.trial.differences) <= {0.0, 1.0}  # A lost side would have shown as a loss.


def test_step_whose_minibatch_is_lost_is_skipped_and_the_run_goes_on(make: Any) -> None:
    silent = {"num_steps": 3, "critic": lambda **inputs: {"requirements": "nothing"}}  # So that nothing is tried out.
    with dspy.context(lm=scripted_lm()):
        result = make(**silent).compile(dspy.Predict(Oracle), trainset=examples(60)).detailed_results
    questions = [examples(60)[int(name.split(":")[1])].question for name in result.history[1].minibatch]
    away = failing(TransportError("reset"), lambda number, user: any(each in user for each in questions))
    with dspy.context(lm=scripted_lm(away)):
        result = make(**silent).compile(dspy.Predict(Oracle), trainset=examples(60)).detailed_results
    assert [record.skipped for record in result.history] == ["no gradient", "minibatch lost", "no gradient"]
    assert result.history[1].minibatch == ()


def test_run_that_lost_a_rollout_and_is_extended_later_repeats_its_steps(make: Any, tmp_path: Path) -> None:
    steps = []
    for script, num_steps in ((failing(TransportError("reset"), lambda number, user: number == 2), 1), (world(), 2)):
        with dspy.context(lm=scripted_lm(script)):
            optimizer = make(num_steps=num_steps, num_threads=1, log_dir=tmp_path)
            steps.append(optimizer.compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results.history)
    assert steps[0][0].lost == 1
    assert replace(steps[1][0], spent=steps[0][0].spent) == steps[0][0]


class Side(dspy.Module):
    """Asks in parallel, where DSPy swallows what a call raises."""

    def __init__(self) -> None:
        super().__init__()
        self.ask = dspy.Predict(Oracle)

    def forward(self, question: str) -> dspy.Prediction:
        parallel = dspy.Parallel(num_threads=2, disable_progress_bar=True)
        (found,) = parallel([(self.ask, {"question": question})])
        return dspy.Prediction(answer=found.answer)


def test_model_that_fails_inside_dspy_parallel_loses_the_rollout(make: Any) -> None:
    lm = scripted_lm(failing(TransportError("reset"), lambda number, user: number == 2))
    with dspy.context(lm=lm):
        result = make(num_steps=1, num_threads=1).compile(Side(), trainset=examples(40)).detailed_results
    assert result.history[0].lost == 1


def test_trace_of_a_call_whose_reply_was_broken_is_that_of_the_call_that_followed() -> None:
    broken = failing(ProviderError("cut off"), lambda number, user: number == 0)
    data = prepare(examples(2), None, 0)
    with dspy.context(lm=scripted_lm(broken, num_retries=1)), closing(Ledger(None, {})) as ledger:
        forward = Forward(
            Student(dspy.Predict(Oracle)),
            Metric(metric, (0, 1)),
            data,
            ledger=ledger,
            budget=Budget(),
            num_threads=1,
            failure_score=0,
        )
        (rollout,) = forward([(Candidate({}), "train:0")])
    (call,) = rollout.calls
    assert call.outputs == {"answer": "unknown"}
    assert call.error == rollout.error == ""


def test_outage_stops_the_run_and_the_next_call_goes_on_as_if_nothing_had_been(make: Any, tmp_path: Path) -> None:
    arguments = {"batch_size": 20, "max_trial_examples": 20, "max_lost_share": 0.4}
    outage = failing(TransportError("connection refused"), lambda number, user: number > 60)
    with (
        dspy.context(lm=scripted_lm(outage)),
        pytest.raises(RuntimeError, match=r"rollouts were lost, .*max_lost_share=0\.4.*connection refused"),
    ):
        make(log_dir=tmp_path, **arguments).compile(dspy.Predict(Oracle), trainset=examples(70))
    results = []
    for folder in (tmp_path, None):
        with dspy.context(lm=scripted_lm()):
            optimized = make(log_dir=folder, **arguments).compile(dspy.Predict(Oracle), trainset=examples(70))
        results.append(optimized.detailed_results)
    assert [record.trial for record in results[0].history] == [record.trial for record in results[1].history]
    assert results[0].history[-1].lost == 0


def test_program_that_failed_on_every_first_example_is_tried_again_once_it_is_mended(make: Any, tmp_path: Path) -> None:
    class Retrieval(dspy.Module):  # type: ignore[misc]  # DSPy is untyped.
        is_down = True

        def __init__(self) -> None:
            super().__init__()
            self.answer = dspy.Predict(Oracle)

        def forward(self, question: str) -> Any:
            if Retrieval.is_down:
                raise ConnectionError("retriever is down")
            return self.answer(question=question)

    optimizer = make(num_steps=2, log_dir=tmp_path)
    with dspy.context(lm=scripted_lm()):
        with pytest.raises(RuntimeError, match=r"failed on all 8 examples .* retriever is down"):
            optimizer.compile(Retrieval(), trainset=examples(40))
        Retrieval.is_down = False
        assert len(optimizer.compile(Retrieval(), trainset=examples(40)).detailed_results.history) == 2


@pytest.mark.parametrize("roles", [("critic",), ("proposer", "rewriter")], ids=["critic", "proposer"])
def test_outage_of_critic_or_proposer_ends_the_run_with_the_best_and_the_next_call_goes_on(
    make: Any, tmp_path: Path, roles: tuple[str, ...]
) -> None:
    hopeless = world(program=lambda system, user: fields(answer="never"))
    answered, asked = [], []

    def down(system: str, user: str) -> str:
        if role_of(system) in roles:
            if asked:
                raise TransportError("connection refused")
            answered.append(user)
        elif role_of(system) == "program" and answered:
            asked.append(user)  # From the first trial on.
        return hopeless(system, user)

    optimizer = make(num_steps=6, log_dir=tmp_path, batch_size=4)
    with dspy.context(lm=scripted_lm(down)):
        result = optimizer.compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results
    assert f"{roles[0].capitalize()} could not be reached in 3 rounds in a row" in result.stopped
    assert "connection refused" in result.stopped
    with dspy.context(lm=scripted_lm(hopeless)):
        result = optimizer.compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results
    assert result.stopped == "6 steps are done"
    assert len(result.history) == 6
    assert result.history[-1].unparsed == 0, "what was asked during the outage was asked again"


def test_what_a_failed_rollout_had_paid_is_not_forgotten_on_resume(make: Any, tmp_path: Path) -> None:
    class Twice(dspy.Module):  # type: ignore[misc]  # DSPy is untyped.
        is_down = True

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = dspy.Predict(Oracle), dspy.Predict(Oracle)

        def forward(self, question: str) -> Any:
            self.first(question=question)
            if Twice.is_down:
                raise TransportError("connection refused")
            return self.second(question=question)

    lm, paid = scripted_lm(), []
    with dspy.context(lm=lm):
        optimizer = make(num_steps=1, log_dir=tmp_path)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="connection refused"):
                optimizer.compile(Twice(), trainset=examples(40))
            paid.append(len(lm.engine.log))
        Twice.is_down = False
        for _ in range(2):
            result = optimizer.compile(Twice(), trainset=examples(40)).detailed_results
            assert result.spent.lm_calls == len(lm.engine.log)
    assert paid == [8, 16]


def test_failure_that_is_the_fault_of_the_prompt_is_a_failing_example_and_not_lost(make: Any) -> None:
    too_long = failing(ContextLengthError("too long"), lambda number, user: number == 2)
    with dspy.context(lm=scripted_lm(too_long)):
        result = make(num_steps=1, num_threads=1).compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results
    assert result.history[0].lost == 0
    assert len(result.history[0].minibatch) == 8


@pytest.mark.parametrize("role", ["program", "critic", "proposer"])
def test_call_that_hangs_is_abandoned_and_counted(make: Any, tmp_path: Path, role: str) -> None:
    release, hung = threading.Event(), []
    # The proposer is asked only where the sentences of the critic are not ahead.
    script = world(program=lambda system, user: fields(answer="never")) if role == "proposer" else world()

    def hanging(system: str, user: str) -> str:
        if role_of(system) == role and not hung:
            hung.append(user)
            release.wait(30)
        return script(system, user)

    with dspy.context(lm=scripted_lm(hanging)):
        optimizer = make(num_steps=2, timeout=0.5, log_dir=tmp_path)
        result = optimizer.compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results
    release.set()
    assert hung
    assert (result.history[-1].lost, result.history[-1].unparsed) == ((1, 0) if role == "program" else (0, 1))
    assert result.history[1].trial is not None


def test_abandoned_rollout_is_charged_for_the_calls_it_has_finished_and_makes_no_more() -> None:
    release, ended, went_on = threading.Event(), threading.Event(), list[str]()

    class Twice(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = dspy.Predict(Oracle), dspy.Predict(Oracle)

        def forward(self, question: str) -> dspy.Prediction:
            try:
                self.first(question=question)
                release.wait(30)
                self.second(question=question)
                went_on.append(question)
            finally:
                ended.set()
            return self.second(question=question)

    data, ledger, budget = prepare(examples(2), None, 0), Ledger(None, {}), Budget()
    with dspy.context(lm=scripted_lm()):
        forward = Forward(
            Student(Twice()),
            Metric(metric, (0, 1)),
            data,
            ledger=ledger,
            budget=budget,
            num_threads=1,
            failure_score=0,
            timeout=0.5,
        )
        forward.pay([(Candidate({}), "train:0")])
    assert forward.lost == 1
    assert (budget.spent.metric_calls, budget.spent.lm_calls) == (1, 1)
    assert budget.spent.input_tokens > 0
    release.set()
    assert ended.wait(30), "the abandoned rollout ends with the reply that was on its way"
    assert not went_on


def test_full_disk_is_said_and_the_run_goes_on_once_there_is_room(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Ledger._open

    def on_a_small_disk(ledger: Ledger, settings: Any) -> None:
        opened(ledger, settings)
        ledger._file.execute("PRAGMA max_page_count=12")

    with monkeypatch.context() as patch, dspy.context(lm=scripted_lm()):
        patch.setattr(Ledger, "_open", on_a_small_disk)
        with pytest.raises(OSError, match=r"ledger.sqlite cannot be written \(database or disk is full\)"):
            make(log_dir=tmp_path).compile(dspy.Predict(Oracle), trainset=examples(40))
    results = []
    for folder in (tmp_path, None):
        with dspy.context(lm=(lm := scripted_lm())):
            results.append((make(log_dir=folder).compile(dspy.Predict(Oracle), trainset=examples(40)), lm))
    (resumed, second), (whole, first) = results
    assert resumed.signature.instructions == whole.signature.instructions
    assert 0 < len(second.engine.log) < len(first.engine.log)


def test_budget_that_ends_among_rollouts_keeps_and_charges_those_in_flight() -> None:
    class EndsAtFour(Budget):
        def check(self, metric_calls: int = 0) -> None:
            if metric_calls == 0:
                with lock:
                    checks.append(1)
                if len(checks) > 4:
                    raise BudgetSpent
                together.wait()

    lock, together, checks = threading.Lock(), threading.Barrier(4, timeout=10), []
    data, ledger, budget = prepare(examples(20), None, 0), Ledger(None, {}), EndsAtFour(None)
    forward = Forward(
        Student(dspy.Predict(Oracle)),
        Metric(metric, (0, 1)),
        data,
        ledger=ledger,
        budget=budget,
        num_threads=4,
        failure_score=0.0,
    )
    candidate = Candidate({"self": "Answer."})
    with dspy.context(lm=scripted_lm()), pytest.raises(BudgetSpent):
        forward([(candidate, name) for name in data.trainset])
    assert budget.spent.metric_calls == 4
    assert sum(ledger.rollout(candidate.id, name) is not None for name in data.trainset) == 4
    ledger.close()


# Repeats of programs that answer differently each time.


def test_repeats_are_asked_anew_averaged_kept_and_counted(make: Any, tmp_path: Path) -> None:
    answers = cycle(["11", "no", "no", "11"])  # Of three repeats one or two are right.
    lm = scripted_lm(world(program=lambda system, user: fields(answer=next(answers))), cache=True, temperature=1.0)
    trainset = [each for each in examples(200) if each.answer == "11"][:30]
    counting = CountingMetric()
    with dspy.context(lm=lm):
        optimizer = make(metric=counting, num_repeats=3, num_steps=1, num_threads=1, log_dir=tmp_path)
        result = optimizer.compile(dspy.Predict(Oracle), trainset=trainset).detailed_results
    assert result.total_metric_calls == counting.calls == lm.engine.count("program")
    (record,) = result.history
    assert 0 < record.loss < 1
    assert lm.engine.count("critic") == len(record.minibatch) == 8
    with sqlite3.connect(tmp_path / "ledger.sqlite") as ledger:
        rows = ledger.execute("SELECT repeat, count(*) FROM rollouts GROUP BY repeat").fetchall()
    ledger.close()
    assert rows == [(repeat, counting.calls // 3) for repeat in range(3)]


@pytest.mark.parametrize("num_repeats", [1, 2])
def test_critic_sees_a_run_that_went_right_beside_the_one_that_failed_on_the_same_example(
    make: Any, num_repeats: int
) -> None:
    answers = cycle(["11", "no"])
    lm = scripted_lm(world(program=lambda system, user: fields(answer=next(answers))), temperature=1.0)
    trainset = [each for each in examples(200) if each.answer == "11"][:30]
    with dspy.context(lm=lm):
        make(num_repeats=num_repeats, num_steps=1, num_threads=1).compile(dspy.Predict(Oracle), trainset=trainset)
    asked = [user for system, user in lm.engine.log if role_of(system) == "critic"]
    assert asked
    for user in asked:
        failed, _, right = user.partition("In another run on the same example all went right:")
        assert "answer: no" in failed
        assert ("answer: 11" in right) is (num_repeats == 2)


def test_repeats_at_temperature_zero_are_refused(make: Any) -> None:
    with (
        dspy.context(lm=scripted_lm(temperature=0)),
        pytest.raises(ValueError, match="`num_repeats` must be 1 at temp"),
    ):
        make(num_repeats=2).compile(dspy.Predict(Oracle), trainset=examples(40))
