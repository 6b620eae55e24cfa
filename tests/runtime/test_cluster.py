"""What only a Ray cluster can do: lose actors, and spread the cells of a comparison."""

from __future__ import annotations

import importlib
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import cloudpickle
import dspy
import pytest

from dspy_dlpo.benchmarks.cells import read_cells
from dspy_dlpo.benchmarks.compare import compare
from dspy_dlpo.runtime.remote import WorkerLost
from tests.small_task import setup


def die() -> None:
    import os

    os._exit(1)


def add(one: int, other: int) -> int:
    return one + other


def fail() -> None:
    raise KeyError("gone")


def test_dead_actor_is_replaced_and_the_others_go_on(cluster: Any) -> None:
    before = cluster.actors
    with pytest.raises(WorkerLost):
        cluster.submit(die).result(60)
    assert len({*map(str, cluster.actors)} - {*map(str, before)}) == 1
    assert [cluster.submit(add, number, 1).result(60) for number in range(4)] == [1, 2, 3, 4]
    with pytest.raises(KeyError, match="gone"):
        cluster.submit(fail).result(60)


def test_run_in_which_actors_are_killed_ends_as_the_undisturbed_one_at_the_same_cost(cluster: Any) -> None:
    from examples.benchmarks.chaos import course, disturbed

    assert disturbed(cluster, 1, 0.2) == course(None, 1)


def test_cells_of_a_comparison_are_spread_over_the_cluster_and_kept(cluster: Any, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"max_metric_calls": 90, "seeds": range(1), "verbose": False, "curves": False}
    cells = compare({"codes": setup}, ["dlpo", "none"], folder=tmp_path / "ray", executor=cluster, **arguments)
    here = compare({"codes": setup}, ["dlpo", "none"], folder=tmp_path / "here", **arguments)
    assert [(cell.key, cell.score, cell.metric_calls) for cell in cells] == [
        (cell.key, cell.score, cell.metric_calls) for cell in here
    ]
    assert len(read_cells(tmp_path / "ray")) == 2
    again = compare({"codes": setup}, ["dlpo", "none"], folder=tmp_path / "ray", executor=Never(), **arguments)
    assert again == cells


class Never:
    """An executor that is asked for nothing."""

    def submit(self, function: Any, /, *args: Any) -> Any:
        raise AssertionError("a cell was asked for")


def test_ray_by_name_needs_the_extra(make: Any, lm: dspy.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ImportError, match=r"Install the extra with: pip install 'dspy-dlpo\[ray\]'"):
        make(executor="ray").compile(dspy.Predict("question -> answer"), trainset=_rows(), valset=_rows())


def _rows() -> list[dspy.Example]:
    return [dspy.Example(question=str(number), answer="1").with_inputs("question") for number in range(8)]


def test_example_runs_on_the_cluster_that_is_there(
    cluster: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import ray

    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    example = importlib.import_module("10_ray")
    cloudpickle.register_pickle_by_value(example)  # As a script, it is `__main__`, and sent by value.
    for name in ("init", "shutdown"):
        monkeypatch.setattr(ray, name, lambda **settings: None)
    monkeypatch.setattr(example, "RayExecutor", lambda **settings: nullcontext(cluster))
    example.main()
    scores = re.search(r"valset: ([\d.]+), ([\d.]+)\.", capsys.readouterr().out)
    assert scores and float(scores[2]) > float(scores[1]) + 0.3
