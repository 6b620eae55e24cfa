"""Rollouts on a Ray cluster: an executor whose workers are actors. Needs the extra `ray`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import Any

from dspy_dlpo.runtime.remote import WorkerLost

_INSTALL = "`executor='ray'` needs Ray. Install the extra with: pip install 'dspy-dlpo[ray]'"


class RayExecutor:
    """Runs functions in actors of a Ray cluster, as `concurrent.futures` executors run them in processes.

    Joins the cluster that `ray.init` has joined, else the one that `RAY_ADDRESS` names, else starts one on this
    machine. An actor that dies is replaced. As the `executor` of `DLPOOptimizer`, let `num_threads` be at least
    `num_actors * concurrency`, so that all of them have work.

    Args:
        num_actors: Actors. Default: as many as the cluster has CPUs.
        concurrency: Functions that an actor runs at once, in threads. More than 1 is for programs that mostly wait.
        num_cpus: CPUs of an actor.
        resources: Further resources of an actor, by name, as for `ray.remote`: `{"GPU": 1}` for one GPU each.
        runtime_env: Ray's description of what the actors need: `working_dir`, `pip`, `env_vars`.

    Raises:
        ImportError: If Ray is not installed.
    """

    def __init__(
        self,
        num_actors: int | None = None,
        *,
        concurrency: int = 1,
        num_cpus: float = 1.0,
        resources: Mapping[str, float] | None = None,
        runtime_env: Mapping[str, Any] | None = None,
    ) -> None:
        try:
            import ray
        except ImportError as error:
            raise ImportError(_INSTALL) from error
        self._ray = ray
        self._started = not ray.is_initialized()
        if self._started:
            ray.init(log_to_driver=False, include_dashboard=False)
        others = dict(resources or {})
        self._options = {
            "max_concurrency": concurrency,
            "num_cpus": num_cpus,
            "num_gpus": others.pop("GPU", 0),
            "resources": others,
            "runtime_env": dict(runtime_env or {}),
            "max_restarts": 0,  # They are replaced here, where it is known what they were doing.
        }
        size = num_actors or max(int(ray.cluster_resources().get("CPU", 1) // (num_cpus or 1)), 1)
        self._lock = threading.Lock()
        self._actors = [self._actor() for _ in range(size)]
        self._load = [0] * size

    @property
    def actors(self) -> list[Any]:
        """The actors, as Ray's handles."""
        with self._lock:
            return [*self._actors]

    def submit(self, function: Callable[..., Any], /, *args: Any) -> Future[Any]:
        """Return the future of `function(*args)`, run by the actor that has least to do.

        The future raises `WorkerLost` if the actor dies. Cancelling it cancels what runs, if Ray can.
        """
        with self._lock:
            index = min(range(len(self._actors)), key=self._load.__getitem__)
            self._load[index] += 1
            actor = self._actors[index]
        reference = actor.run.remote(function, *args)
        future = _Future(partial(self._cancel, reference))
        reference.future().add_done_callback(partial(self._end, index, actor, future))
        return future

    def _end(self, index: int, actor: Any, future: _Future, done: Future[Any]) -> None:
        errors = self._ray.exceptions
        result: Any = None
        failure: BaseException | None = None
        try:
            result = done.result()
        except (errors.RayActorError, errors.NodeDiedError, errors.OutOfMemoryError, errors.ObjectLostError) as lost:
            failure = WorkerLost(str(lost).partition("\n")[0])
        except errors.RayTaskError as error:
            failure = error.cause if isinstance(error.cause, Exception) else error
        except BaseException as error:  # noqa: BLE001 - It is raised where the result is wanted.
            failure = error
        with self._lock:
            if isinstance(failure, WorkerLost) and self._actors[index] is actor:
                self._actors[index] = self._actor()
                self._load[index] = 0
            elif self._actors[index] is actor:
                self._load[index] -= 1
        if not future.set_running_or_notify_cancel():
            return
        if failure is None:
            future.set_result(result)
        else:
            future.set_exception(failure)

    def _actor(self) -> Any:
        return self._ray.remote(_Worker).options(**self._options).remote()

    def _cancel(self, reference: Any) -> None:
        self._ray.cancel(reference, force=False)

    def shutdown(self) -> None:
        """End the actors, and the cluster if it was started here."""
        for actor in self._actors:
            self._ray.kill(actor)
        if self._started:
            self._ray.shutdown()

    def __enter__(self) -> RayExecutor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.shutdown()


class _Worker:
    """An actor."""

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function."""
        return function(*args)


class _Future(Future[Any]):
    """A future that cancels at its source too."""

    def __init__(self, cancel: Callable[[], None]) -> None:
        super().__init__()
        self._cancel_source = cancel

    def cancel(self) -> bool:
        """Cancel; what a worker does is stopped if it can be."""
        self._cancel_source()
        return super().cancel()
