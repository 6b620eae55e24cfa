from __future__ import annotations

import json
import os
import re
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dspy
import pytest

from dspy_dlpo.descent.listeners import Listener
from dspy_dlpo.views.trackers import MLflowListener, WandbListener
from tests.scripted import Oracle, Program, examples, metric

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # Read on import. It would call home.
mlflow = pytest.importorskip("mlflow", reason="needs mlflow, of the `test` extra")
wandb = pytest.importorskip("wandb", reason="needs wandb, of the `test` extra")

pytestmark = [  # Of MLflow's own, when its store and its classes are imported.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """MLflow's SQLite file, one for all: it takes seconds to make."""
    before = mlflow.get_tracking_uri()
    folder = tmp_path_factory.mktemp("mlflow")
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    yield folder
    mlflow.set_tracking_uri(before)


@pytest.fixture
def store(database: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A client of MLflow, and the runs in an experiment of its own."""
    name = request.node.name
    experiment = mlflow.create_experiment(name, artifact_location=(database / "artifacts").as_uri())
    mlflow.set_experiment(experiment_id=experiment)
    client = mlflow.MlflowClient()
    yield SimpleNamespace(client=client, runs=lambda: client.search_runs([experiment]))
    while mlflow.active_run():
        mlflow.end_run()


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was logged of listeners that raised."""
    return [record.message for record in caplog.records if record.name == "dspy_dlpo.descent.listeners"]


class FailingMetric:
    """The metric of the world; from a call on, it is interrupted or returns what is no score."""

    def __init__(self, good_calls: int, interrupted: bool) -> None:
        self.calls, self.good_calls, self.interrupted = 0, good_calls, interrupted

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> float | None:
        self.calls += 1
        if self.calls <= self.good_calls:
            return metric(example, prediction).score
        if self.interrupted:
            raise KeyboardInterrupt
        return None


def test_mlflow_has_settings_metrics_of_each_step_program_and_report(
    store: Any, lm: dspy.LM, make: Any, tmp_path: Path
) -> None:
    long = re.compile("Answer|" + "x" * 20_000)
    optimizer = make(listeners=[MLflowListener("tuning")], protect=[long])
    program = optimizer.compile(dspy.Predict(Oracle), trainset=examples(40))
    result = program.detailed_results

    (run,) = store.runs()
    assert (run.info.run_name, run.info.status) == ("tuning", "FINISHED")
    assert run.data.params["seed"] == "0"
    assert run.data.params["versions.dspy"] == dspy.__version__
    assert json.loads(run.data.params["score_range"]) == [0.0, 1.0]
    assert run.data.params["protect"] == json.dumps([long.pattern])[:6000]
    for name, of in {
        "best_score": lambda record: record.best_score,
        "metric_calls": lambda record: record.spent.metric_calls,
        "accepted": lambda record: None if record.trial is None else float(record.accepted),
    }.items():
        kept = {each.step: each.value for each in store.client.get_metric_history(run.info.run_id, name)}
        end = {len(result.history): result.numbers()[name]} if name in result.numbers() else {}
        assert kept == {record.step: of(record) for record in result.history if of(record) is not None} | end
    assert run.data.metrics["gain"] == result.gain.mean
    assert run.data.metrics["val_score_after"] == result.val_aggregate_scores[result.best_idx]

    folder = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, dst_path=str(tmp_path / "copy"))
    again = dspy.Predict(Oracle)
    again.load(str(Path(folder, "program.json")))
    assert again.signature.instructions == program.signature.instructions
    assert Path(folder, "report.html").read_text().lower().startswith("<!doctype html>")
    assert mlflow.active_run() is None


@pytest.mark.parametrize(("interrupted", "status"), [(False, "FAILED"), (True, "KILLED")], ids=["error", "Ctrl-C"])
@pytest.mark.parametrize("good_calls", [0, 30], ids=["at once", "later"])
def test_mlflow_run_that_does_not_end_well_says_so_and_is_not_left_active(
    store: Any, lm: dspy.LM, make: Any, good_calls: int, interrupted: bool, status: str
) -> None:
    broken = FailingMetric(good_calls, interrupted)
    optimizer = make(listeners=[MLflowListener()], metric=broken, num_threads=1, num_steps=9)
    with mlflow.start_run() as own:
        with pytest.raises(KeyboardInterrupt if interrupted else ValueError):
            optimizer.compile(dspy.Predict(Oracle), trainset=examples(40))
        assert mlflow.active_run().info.run_id == own.info.run_id
    states = {run.info.run_id: run.info.status for run in store.runs()}
    assert [state for run, state in states.items() if run != own.info.run_id] == [status]


def test_resumed_run_goes_on_with_the_mlflow_run_that_its_killed_process_left_running(
    store: Any, lm: dspy.LM, make: Any, tmp_path: Path
) -> None:
    def compile_until(num_steps: int, *listeners: Listener) -> Any:
        optimizer = make(listeners=listeners, num_steps=num_steps, log_dir=tmp_path / "run")
        return optimizer.compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results

    killed = MLflowListener()
    killed.on_run_end = lambda result, program: killed._send()  # type: ignore[method-assign]  # And then kill -9.
    compile_until(2, killed)
    (first,) = store.runs()
    assert first.info.status == "RUNNING"
    mlflow.tracking.fluent._active_run_stack.get().clear()  # As in a new process.
    result = compile_until(4, MLflowListener())
    (again,) = store.runs()
    assert (again.info.run_id, again.info.status) == (first.info.run_id, "FINISHED")
    losses = store.client.get_metric_history(again.info.run_id, "loss")
    assert [metric.step for metric in losses] == [record.step for record in result.history]
    compile_until(1, MLflowListener())  # Another folder or another start is another run.
    assert len(store.runs()) == 1
    other = make(listeners=[MLflowListener()], num_steps=1, log_dir=tmp_path / "other")
    other.compile(dspy.Predict(Oracle), trainset=examples(40))
    assert len(store.runs()) == 2


def test_mlflow_has_the_models_and_the_date(store: Any, lm: dspy.LM, make: Any) -> None:
    make(listeners=[MLflowListener()], num_steps=1).compile(dspy.Predict(Oracle), trainset=examples(40))
    (run,) = store.runs()
    names = ("program_model", "proposer_model", "critic_model", "prompt_model")
    assert [run.data.params[name] for name in names] == ["scripted/model"] * 4
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", run.data.params["started"])


def test_mlflow_run_is_nested_under_that_of_autolog(store: Any, lm: dspy.LM, make: Any) -> None:
    from dspy_dlpo import DLPOOptimizer

    compile_before = DLPOOptimizer.compile
    callbacks, track_usage = dspy.settings.callbacks, dspy.settings.track_usage
    mlflow.dspy.autolog(log_compiles=True, silent=True)
    try:
        make(listeners=[MLflowListener()]).compile(dspy.Predict(Oracle), trainset=examples(40))
    finally:
        mlflow.dspy.autolog(disable=True, silent=True)
        dspy.settings.configure(callbacks=callbacks, track_usage=track_usage)
        DLPOOptimizer.compile = compile_before  # type: ignore[method-assign]  # MLflow had replaced it.
    outer, inner = sorted(store.runs(), key=lambda run: "mlflow.parentRunId" in run.data.tags)
    assert inner.data.tags["mlflow.parentRunId"] == outer.info.run_id
    assert [outer.info.status, inner.info.status] == ["FINISHED", "FINISHED"]
    assert "gain" in inner.data.metrics
    assert mlflow.active_run() is None


def test_mlflow_that_cannot_be_reached_leaves_the_run_and_the_users_own_alone(
    store: Any, lm: dspy.LM, make: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no server")

    with mlflow.start_run() as own:
        monkeypatch.setattr(mlflow, "start_run", fail)
        program = make(listeners=[MLflowListener()]).compile(dspy.Predict(Oracle), trainset=examples(40))
        assert mlflow.active_run().info.run_id == own.info.run_id
    assert program.detailed_results.history
    assert complaints(caplog) == ["MLflowListener raised in on_run_start; the run goes on."]
    assert not store.runs()[0].data.metrics


SECRETS = {"api_key": "sk-1234", "aws_secret_access_key": "AKIA9", "azure_ad_token": "token-77"}


def test_no_setting_of_a_model_but_its_name_leaves_the_machine(
    store: Any, lm: dspy.LM, make: Any, tmp_path: Path
) -> None:
    program = Program(lambda self, question: self.answer(question=question), answer=Oracle, spare=Oracle)
    program.spare.lm = dspy.LM("openai/other", extra_headers={"x-key": "header-99"}, **SECRETS)
    make(listeners=[MLflowListener()], num_steps=1).compile(program, trainset=examples(40))
    (run,) = store.runs()
    folder = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, dst_path=str(tmp_path / "copy"))
    sent = str(run.to_dictionary()) + "".join(path.read_text() for path in Path(folder).iterdir())
    assert "scripted/model, openai/other" in sent
    assert [secret for secret in [*SECRETS.values(), "header-99"] if secret in sent] == []


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    return tmp_path


def kept_by_wandb(folder: Path) -> list[dict[str, Any]]:
    """Return the records of the run in a folder, as W&B will send them once it is online.

    The file is a LevelDB log behind a header of 7 bytes: blocks of 32 KiB with chunks of records, each behind its own 7
    bytes (checksum, length, type: whole or first to last).
    """
    from google.protobuf.json_format import MessageToDict
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # Waits until all is written.
    (path,) = folder.rglob("*.wandb")
    data, place, parts, records = path.read_bytes(), 7, b"", []
    while place < len(data):
        if (room := 32768 - place % 32768) < 7:
            place += room
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            records.append(MessageToDict(Record.FromString(parts)))
            parts = b""
    return records


def _items(records: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Return the entries of a kind of records, as dicts."""
    parts = [record[kind] for record in records if kind in record]
    return [
        {each.get("key") or ".".join(each["nestedKey"]): json.loads(each["valueJson"]) for each in found}
        for part in parts
        if (found := part.get("item") or part.get("update"))
    ]


def test_wandb_keeps_the_same_offline(offline: Path, lm: dspy.LM, make: Any, caplog: pytest.LogCaptureFixture) -> None:
    listener = WandbListener(project="dlpo", dir=str(offline))
    result = make(listeners=[listener]).compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results
    assert complaints(caplog) == []
    records = kept_by_wandb(offline)
    steps = [each for each in _items(records, "history") if "best_score" in each]
    assert [(each["_step"], each["best_score"]) for each in steps] == [
        *((record.step, record.best_score) for record in result.history),
        (len(result.history), result.val_aggregate_scores[result.best_idx]),
    ]
    config = next(_items([record["run"]], "config")[0] for record in records if "run" in record)
    assert config["num_train"] == result.run.num_train
    assert config["score_range"] == [0.0, 1.0]
    summary = {name: value for each in _items(records, "summary") for name, value in each.items()}
    assert summary["gain"] == result.gain.mean
    files = {
        entry["path"]
        for record in records
        for request in [record.get("request", {})]
        for entry in (request.get("logArtifact") or record).get("artifact", {}).get("manifest", {}).get("contents", ())
    }
    assert files == {"program.json", "report.html"}


def test_wandb_run_of_a_compilation_that_raises_has_failed(offline: Path, lm: dspy.LM, make: Any) -> None:
    optimizer = make(listeners=[WandbListener(dir=str(offline))], metric=FailingMetric(0, interrupted=False))
    with pytest.raises(ValueError, match="`metric` returned None"):
        optimizer.compile(dspy.Predict(Oracle), trainset=examples(40))
    (exit_record,) = [record["exit"] for record in kept_by_wandb(offline) if "exit" in record]
    assert exit_record["exitCode"] == 1


def test_wandb_run_of_the_user_stays_as_it_is(offline: Path, lm: dspy.LM, make: Any) -> None:
    with wandb.init(project="own", dir=str(offline)) as own:
        make(listeners=[WandbListener(dir=str(offline))]).compile(dspy.Predict(Oracle), trainset=examples(40))
        assert wandb.run is own
        own.log({"still": 1})


@pytest.mark.parametrize(
    ("listener", "package", "extra"), [(MLflowListener, "mlflow", "mlflow"), (WandbListener, "wandb", "wandb")]
)
def test_missing_tracker_names_the_extra(
    listener: Callable[[], Listener], package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"pip install 'dspy-dlpo\[{extra}\]'"):
        listener()
