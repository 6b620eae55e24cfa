"""Running optimisers against each other: the same splits, models and budget of metric calls, many seeds, resumable.

A cell is one run: (task, optimiser, budget, seed). Its result is one JSON line in the folder of the comparison; a cell
that has one is not run again. In a cell no answer comes from a cache, so that none profits from what another has
paid for. The results hold scores, instructions and costs, and no row of a data set: demos are kept as indices into the
trainset.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, as_completed, wait
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

import dspy
from dspy.utils.callback import BaseCallback
from tqdm import tqdm

from dspy_dlpo.benchmarks.cells import Cell, add_cell, keep_settings, read_cells
from dspy_dlpo.benchmarks.job import CountedMetric, Job, Outcome, Rival, score_of
from dspy_dlpo.benchmarks.rivals.plans import BudgetTooSmall
from dspy_dlpo.benchmarks.rivals.registry import rival_named
from dspy_dlpo.benchmarks.tasks.task import Task
from dspy_dlpo.core.records import Spending
from dspy_dlpo.core.tokens import count_tokens
from dspy_dlpo.runtime.executor import Executor
from dspy_dlpo.runtime.faults import FATAL, is_outside
from dspy_dlpo.runtime.metering import metered
from dspy_dlpo.runtime.prices import Prices
from dspy_dlpo.runtime.remote import WorkerLost

_PACKAGES = ("dspy-dlpo", "dspy", "gepa", "optuna", "textgrad")
_NO_END = 1_000_000  # DSPy would end an evaluation after 10 replies that cannot be parsed.
_MAX_CHARS = 200
_ATTEMPTS = 3  # At a cell whose worker dies.


@dataclass(frozen=True)
class Setting:
    """What a cell runs on.

    Attributes:
        task: Program, examples and metric.
        lm: Runs the program.
        prompt_lm: Criticises and proposes. Default: `lm`.
        score: Takes a program and returns its test score, from 0 to 1, where that can be had without running it.
            Default: the mean score on the testset, run with `lm`.
    """

    task: Task
    lm: dspy.BaseLM
    prompt_lm: dspy.BaseLM | None = None
    score: Callable[[dspy.Module], float] | None = None


Setup = Callable[[int], Setting]
"""From a seed to a setting. With several processes it is pickled: a function of a module, or a `partial` of one."""


def compare(
    tasks: Mapping[str, Setup],
    optimizers: Sequence[str] | Mapping[str, Rival],
    *,
    folder: str | Path,
    max_metric_calls: int | Sequence[int] = 300,
    seeds: Iterable[int] = range(3),
    num_workers: int = 1,
    num_threads: int = 1,
    curves: bool = True,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    verbose: bool = True,
    executor: Executor | None = None,
) -> list[Cell]:
    """Run every optimiser on every task with every budget and seed, except what the folder has already.

    Args:
        tasks: For each name a function from the seed to task and models.
        optimizers: Names (see `dspy_dlpo.benchmarks.rivals.registry.rival_named`), or functions of one's own by name.
        folder: Where the results are kept, in `cells.jsonl`. One folder for one comparison: whoever changes a task, a
            model or an optimiser takes a new one; `settings` can see to it.
        max_metric_calls: Budgets, in metric calls.
        seeds: Seeds; the same for all optimisers, so that they can be compared in pairs.
        num_workers: Processes that run cells side by side.
        num_threads: Program runs in flight at once within a cell.
        curves: Whether the programs that were best on the way are tested too. Where `Setting.score` is not given, each
            costs a pass over the testset.
        settings: What a task is run with (its models, say), by the task's name, as JSON. It is kept in the folder, and
            other settings are refused there.
        verbose: Whether progress is shown on the terminal (standard error).
        executor: Runs the cells, all of them side by side, in place of `num_workers`: any with `submit` as in
            `concurrent.futures`, such as `dspy_dlpo.runtime.cluster.RayExecutor`.

    Returns:
        The cells that were asked for, seed by seed; `dspy_dlpo.benchmarks.tables` makes tables and pictures of them.

    Raises:
        ValueError: If an optimiser is unknown, a count is below 1, or the folder has results with other settings.
        ImportError: If an optimiser's package is not installed.
        dspy.LMError: If a language model fails in a way that no retry can mend.
    """
    budgets = [max_metric_calls] if isinstance(max_metric_calls, int) else list(max_metric_calls)
    for name, value in (("max_metric_calls", min(budgets)), ("num_workers", num_workers), ("num_threads", num_threads)):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, but got {name}={value}.")
    rivals = dict(optimizers) if isinstance(optimizers, Mapping) else {name: rival_named(name) for name in optimizers}
    wanted = [
        Cell(task, optimizer, budget, seed)
        for seed, task, budget, optimizer in product(seeds, tasks, budgets, rivals)  # Cut short, it is fair already.
    ]
    done = {cell.key: cell for cell in read_cells(folder) if not cell.failed}
    jobs = [
        partial(run_cell, cell, tasks[cell.task], rivals[cell.optimizer], num_threads=num_threads, curves=curves)
        for cell in wanted
        if cell.key not in done
    ]
    keep_settings(folder, settings or {})
    with tqdm(total=len(jobs), unit="cell", disable=not verbose) as bar:
        for cell in _run(jobs, num_workers) if executor is None else spread(jobs, executor):
            done[cell.key] = cell
            add_cell(folder, cell)
            bar.update()
    return [done[cell.key] for cell in wanted]


def _run(jobs: Sequence[Callable[[], Cell]], num_workers: int) -> Iterator[Cell]:
    """Yield the results as they come."""
    if num_workers == 1:
        for job in jobs:
            yield job()
        return
    with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
        try:
            for future in as_completed([pool.submit(job) for job in jobs]):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def spread(jobs: Sequence[Callable[[], Cell]], executor: Executor) -> Iterator[Cell]:
    """Yield the results of jobs as they come from an executor; one whose worker dies is tried again, twice."""
    pending = {executor.submit(job): (job, 1) for job in jobs}
    try:
        while pending:
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                job, attempt = pending.pop(future)
                try:
                    yield future.result()
                except WorkerLost:
                    if attempt == _ATTEMPTS:
                        raise
                    pending[executor.submit(job)] = job, attempt + 1
    finally:
        for future in pending:
            future.cancel()


def run_cell(cell: Cell, setup: Setup, rival: Rival, *, num_threads: int = 1, curves: bool = True) -> Cell:
    """Run one cell and return it with its results.

    An error of the optimiser is a result, and does not end the comparison. A cell in which a language model could not
    be reached has failed, whatever the optimiser made of it. Replies that cannot be parsed score 0 and end nothing.

    Raises:
        ImportError: If the optimiser's package is not installed.
        dspy.LMError: If a language model fails in a way that no retry can mend.
    """
    setting = setup(cell.seed)
    outages = Outages()
    lm = outages.watch(setting.lm)
    prompt_lm = outages.watch(setting.prompt_lm) if setting.prompt_lm else lm
    setting = replace(setting, task=replace(setting.task, metric=outages.watched(setting.task.metric)))
    metric = CountedMetric(setting.task.metric)
    job = Job(setting.task, metric, lm, prompt_lm, cell.max_metric_calls, cell.seed, num_threads)
    prices = Prices()
    prices.look_up({lm.model, prompt_lm.model})
    problem: Exception | None = None
    with quiet():
        try:
            with metered(prices, lm=lm, max_errors=_NO_END) as meter:
                outcome = rival(job)
            cell = _result(
                cell,
                setting,
                outcome,
                meter.spent,
                metric.calls,
                partial(test_program, setting, lm, num_threads),
                curves,
            )
        except BudgetTooSmall as too_small:
            return replace(cell, skipped=str(too_small))
        except ImportError:
            raise
        except Exception as error:  # noqa: BLE001 - Whatever a rival raises, the others' cells go on.
            problem = error
    problem = outages.problem or problem
    if isinstance(problem, (*FATAL, ImportError)):
        raise problem
    if problem is not None:
        said = str(problem).partition("\n")[0][:_MAX_CHARS]
        return Cell(*cell.key, failed=f"{type(problem).__name__}: {said}", metric_calls=metric.calls)
    return cell


class Outages(BaseCallback):  # type: ignore[misc]  # DSPy is untyped.
    """Remembers whether a language model failed for reasons outside the request, or a metric failed.

    Optimisers take both for a score.
    """

    def __init__(self) -> None:
        self.problem: Exception | None = None

    def watch(self, lm: dspy.BaseLM) -> dspy.BaseLM:
        """Return a copy of a language model that is watched, and has no cache."""
        return lm.copy(cache=False, callbacks=[*lm.callbacks, self])

    def watched(self, metric: Callable[..., Any]) -> Callable[..., Any]:
        """Return a metric whose failures are remembered."""

        def watched(*args: Any, **kwargs: Any) -> Any:
            try:
                return metric(*args, **kwargs)
            except Exception as problem:  # Whatever it is, it is raised again.
                self.problem = self.problem or problem
                raise

        return watched

    def on_lm_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        """Remember a failed call; DSPy calls this."""
        if exception is not None and is_outside(exception):
            self.problem = self.problem or exception  # type: ignore[assignment]  # It is an LMError.


def _result(
    cell: Cell,
    setting: Setting,
    outcome: Outcome,
    spent: Spending,
    metric_calls: int,
    test: Callable[[dspy.Module], tuple[float, dict[str, float]]],
    curves: bool,
) -> Cell:
    score, scores = test(outcome.program)
    known = {_fingerprint(outcome.program): score}
    curve: list[tuple[int, float]] = []
    for calls, program in [(0, setting.task.program), *outcome.bests] if curves else ():
        name = _fingerprint(program)
        if name not in known:
            known[name] = test(program)[0]
        if not curve or known[name] != curve[-1][1]:
            curve.append((calls, known[name]))
    return replace(
        cell,
        score=score,
        scores=scores,
        curve=[*curve, (metric_calls, score)] if curves else [],
        metric_calls=metric_calls,
        lm_calls=spent.lm_calls,
        input_tokens=spent.input_tokens,
        output_tokens=spent.output_tokens,
        cost=spent.cost,
        seconds=spent.seconds,
        prompt_tokens=prompt_tokens_of(outcome.program),
        instructions=_instructions(outcome.program),
        demos=_demos(outcome.program, setting.task.trainset),
        plan=outcome.plan,
        versions=dict(versions_used()),
    )


def test_program(
    setting: Setting, lm: dspy.BaseLM, num_threads: int, program: dspy.Module
) -> tuple[float, dict[str, float]]:
    """Return the test score of a program, and that of each test example if it was run."""
    if setting.score is not None:
        return setting.score(program), {}
    task = setting.task
    evaluate = dspy.Evaluate(
        devset=list(task.testset),
        metric=lambda example, prediction, trace=None: score_of(task.metric(example, prediction)),
        num_threads=num_threads,
        display_progress=False,
        max_errors=_NO_END,
    )
    with dspy.context(lm=lm):
        scores = [float(score) for _, _, score in evaluate(program).results]
    return fmean(scores), dict(zip(_ids(task.testset), scores, strict=True))


def _ids(examples: Sequence[dspy.Example]) -> list[str]:
    return [str(example.get("dspy_id", index)) for index, example in enumerate(examples)]


def _instructions(program: dspy.Module) -> dict[str, str]:
    return {name: predictor.signature.instructions for name, predictor in program.named_predictors()}


def _demo_fields(demo: Any) -> dict[str, Any]:
    return {name: value for name, value in dict(demo).items() if name != "augmented"}


def _fingerprint(program: dspy.Module) -> str:
    demos = [[_demo_fields(demo) for demo in predictor.demos] for predictor in program.predictors()]
    return json.dumps([_instructions(program), demos], sort_keys=True, default=str)


def prompt_tokens_of(program: dspy.Module) -> int:
    """Return the length of a program's instructions and demos."""
    texts = [*_instructions(program).values()]
    texts += [
        str(value) for each in program.predictors() for demo in each.demos for value in _demo_fields(demo).values()
    ]
    return sum(map(count_tokens, texts))


def _demos(program: dspy.Module, trainset: Sequence[dspy.Example]) -> dict[str, list[str]]:
    """Return which train examples the demos are: those with the same inputs."""
    keys = (json.dumps(each.inputs().toDict(), sort_keys=True, default=str) for each in trainset)
    ids = dict(zip(keys, _ids(trainset), strict=True))
    found: dict[str, list[str]] = {}
    for name, predictor in program.named_predictors():
        inputs = predictor.signature.input_fields
        shown = [{field: demo[field] for field in inputs if field in demo} for demo in predictor.demos]
        found[name] = [ids.get(json.dumps(each, sort_keys=True, default=str), "") for each in shown]
    return found


def versions_used() -> Iterator[tuple[str, str]]:
    """Yield the packages that took part, with their versions."""
    for package in _PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the rivals' progress bars and remarks off the terminal."""
    logger = logging.getLogger("dspy")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        try:
            yield
        finally:
            logger.setLevel(level)
