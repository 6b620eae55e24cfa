"""Runs in MLflow and in Weights & Biases: give one of these listeners to `DLPOOptimizer(listeners=[...])`.

Both keep the same: settings, models and date as parameters; the numbers of each step as metrics, and those of the end
as a last step; as files the program (`program.json`, for `dspy.Module.load`) and the report (`report.html`). The report
shows prompts and examples; where those may not leave the machine, keep the tracker on it too.

Scores, losses, gains and thresholds are on the metric's scale. Calls, tokens and `cost`, in dollars, are what the run
had spent by the end of the step; `unparsed` replies and `lost` rollouts count from the start too.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dspy
from pydantic_core import to_json

from dspy_dlpo.core.steps import RunInfo, StepRecord
from dspy_dlpo.descent.listeners import Listener
from dspy_dlpo.descent.outcome import RunResult
from dspy_dlpo.runtime.budget import Budget
from dspy_dlpo.views.runs import program_state
from dspy_dlpo.views.words import started

_SECONDS_BETWEEN = 5.0
_MOST_METRICS = 1000  # That MLflow takes in one call.
_TAG = "dspy_dlpo.run"
"""The tag of MLflow's runs by which a resumed run finds the one that it began."""


class MLflowListener(Listener):
    """Keeps a run in MLflow, in the experiment that is set there.

    It is nested under the active run, such as that of `mlflow.dspy.autolog(log_compiles=True)`. A run that ends in an
    exception is `FAILED`, one that is interrupted `KILLED`. One whose process was killed stays `RUNNING`, for nobody is
    left to say so, until it is resumed: a resumed run goes on with the run of MLflow that it began. The numbers of
    steps are sent together, every 5 seconds and at the end, for a call of MLflow takes longer than a step may.

    Args:
        run_name: Name of the run. Default: MLflow makes one up.

    Raises:
        ImportError: If MLflow is not installed.
    """

    def __init__(self, run_name: str | None = None) -> None:
        try:
            import mlflow
        except ImportError as error:
            raise ImportError("MLflowListener needs MLflow: pip install 'dspy-dlpo[mlflow]'") from error
        self._mlflow, self._run_name, self._run_id = mlflow, run_name, ""
        self._waiting: list[Any] = []
        self._next_step = 0
        self._sent = 0.0

    def on_run_start(self, run: RunInfo, budget: Budget) -> None:
        """Start a run with the settings as parameters, cut to the length that MLflow takes."""
        from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH

        self._run_id, self._waiting, self._sent = "", [], time.monotonic()  # Nothing of an earlier compilation goes on.
        name = _name_of(run)
        earlier = self._earlier(name) if name and len(run.sessions) > 1 else None
        ours = self._mlflow.start_run(
            run_id=earlier.info.run_id if earlier else None,
            run_name=None if earlier else self._run_name,
            nested=True,
            tags={_TAG: name} if name else None,
        )
        self._run_id = ours.info.run_id
        kept = earlier.data.params if earlier else {}
        self._next_step = self._steps_of(self._run_id) if earlier else 0
        parameters = {name: _text(value)[:MAX_PARAM_VAL_LENGTH] for name, value in _parameters(run).items()}
        self._mlflow.log_params({name: value for name, value in parameters.items() if name not in kept})

    def _earlier(self, name: str) -> Any:
        """Return MLflow's run of an earlier session, in the experiment that is set; None if there is none."""
        found = self._mlflow.search_runs(
            filter_string=f"tags.`{_TAG}` = '{name}'", order_by=["attributes.start_time DESC"], output_format="list"
        )
        return found[0] if found else None

    def _steps_of(self, run_id: str) -> int:
        """Return how many steps a run has got already: a resumed run tells its listeners everything again."""
        history = self._mlflow.MlflowClient().get_metric_history(run_id, "loss")  # That the final choice has not.
        return max((metric.step for metric in history), default=-1) + 1

    def on_step_end(self, record: StepRecord) -> None:
        """Log the numbers of the step, together with those of the next ones."""
        if self._run_id and record.step >= self._next_step:
            now = int(1000 * time.time())
            numbers = record.numbers().items()
            self._waiting += [self._mlflow.entities.Metric(name, value, now, record.step) for name, value in numbers]
            if time.monotonic() - self._sent >= _SECONDS_BETWEEN:
                self._send()

    def on_run_end(self, result: RunResult, program: dspy.Module) -> None:
        """Log the final scores, the program and the report."""
        if not self._run_id:
            return
        try:
            self._send()
            self._mlflow.log_metrics(result.numbers(), step=len(result.history), run_id=self._run_id)
            with _files(result) as folder:
                self._mlflow.log_artifacts(str(folder), run_id=self._run_id)
        finally:
            self._end("FINISHED")

    def on_run_error(self, error: BaseException) -> None:
        """Log what is left, and end the run as failed or killed."""
        try:
            self._send()
        finally:
            self._end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")

    def _send(self) -> None:
        client = self._mlflow.MlflowClient()
        while self._run_id and self._waiting:
            client.log_batch(self._run_id, metrics=self._waiting[:_MOST_METRICS])
            del self._waiting[:_MOST_METRICS]
        self._sent = time.monotonic()

    def _end(self, status: str) -> None:
        active = self._mlflow.active_run()
        if active is not None and active.info.run_id == self._run_id:  # Not one of the user's, if ours never began.
            self._mlflow.end_run(status)


class WandbListener(Listener):
    """Keeps a run in Weights & Biases, beside a run of the user's own. `WANDB_MODE=offline` keeps it on the machine.

    Args:
        settings: For `wandb.init`: `project`, `name`, `mode` and so on.

    Raises:
        ImportError: If wandb is not installed.
    """

    def __init__(self, **settings: Any) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ImportError("WandbListener needs wandb: pip install 'dspy-dlpo[wandb]'") from error
        self._wandb, self._settings, self._run = wandb, settings, None

    def on_run_start(self, run: RunInfo, budget: Budget) -> None:
        """Start a run with the settings as its config."""
        self._run = None  # As in MLflowListener.
        self._run = self._wandb.init(reinit="create_new", config=_parameters(run), **self._settings)

    def on_step_end(self, record: StepRecord) -> None:
        """Log the numbers of the step."""
        if self._run is not None:
            self._run.log(record.numbers(), step=record.step)

    def on_run_end(self, result: RunResult, program: dspy.Module) -> None:
        """Keep the final scores in the summary, and the program and the report as an artifact."""
        if self._run is None:
            return
        try:
            self._run.log(result.numbers(), step=len(result.history))
            self._run.summary.update(result.numbers())
            artifact = self._wandb.Artifact(f"dlpo-{self._run.id}", type="run")
            with _files(result) as folder:
                artifact.add_dir(str(folder))
                self._run.log_artifact(artifact)
        finally:
            self._run.finish()

    def on_run_error(self, error: BaseException) -> None:
        """End the run as failed."""
        if self._run is not None:
            self._run.finish(exit_code=1)


def _name_of(run: RunInfo) -> str:
    """Return what tells a run from all others, also when it is resumed; empty for one that cannot be."""
    text = f"{run.settings.get('log_dir')} {run.sessions[0].started if run.sessions else ''}"
    return hashlib.sha256(text.encode()).hexdigest()[:16] if run.settings.get("log_dir") else ""


def _parameters(run: RunInfo) -> dict[str, Any]:
    about = {name: getattr(run, name) for name in ("program_name", "num_train", "num_val", "held_out")}
    about |= {f"{role}_model": name for role, name in run.models.items()} | {"started": started(run)}
    versions = {f"versions.{name}": version for name, version in run.versions.items()}
    return {**run.settings, **about, **versions}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@contextmanager
def _files(result: RunResult) -> Iterator[Path]:
    """Write the program and the report into a folder that lasts for the block.

    The program is without its language models: DSPy would save their settings, among which may be keys.
    """
    from dspy_dlpo.views.report import save_report

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "program.json").write_bytes(to_json(program_state(result), indent=2))
        save_report(result, Path(folder, "report.html"))
        yield Path(folder)
