"""The simulation as a whole: every optimiser runs on it, and what it does not know it refuses."""

from __future__ import annotations

import logging
from collections.abc import Callable
from statistics import fmean
from typing import Any

import dspy
import pytest

from dspy_dlpo import DLPOOptimizer
from dspy_dlpo.benchmarks.simulation.critic import output_fields
from dspy_dlpo.benchmarks.simulation.simulator import Simulation, simulation


@pytest.fixture(scope="module")
def sim() -> Simulation:
    return simulation("medium", seed=3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"difficulty": "brutal"}, "`difficulty` must be one of easy, medium, hard, but got 'brutal'"),
        ({"latency": -1.0}, "`latency` must be at least 0 seconds, but got latency=-1.0"),
    ],
)
def test_a_wrong_argument_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        simulation(**arguments)


def test_everything_is_labelled_simulated(sim: Simulation) -> None:
    assert all("simulated" in name for name in (sim.task.name, sim.lm.model, sim.prompt_lm.model))


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: dspy.Predict("question -> poem, rhyme")(question="?"), "output fields poem, rhyme"),
        (lambda: dspy.settings.lm("Tell me a joke."), "does not know the prompt 'Tell me a joke.'"),
        (lambda: dspy.Predict("request -> answer")(request="Order 1: none"), "must be asked about one of its orders"),
    ],
    ids=["fields", "plain", "order"],
)
def test_an_unknown_prompt_is_an_error_that_names_it(sim: Simulation, ask: Callable[[], Any], message: str) -> None:
    with dspy.context(lm=sim.prompt_lm), pytest.raises(dspy.LMError, match=message):
        ask()


def _dlpo(sim: Simulation, metric: Any) -> dspy.Module:
    optimizer = DLPOOptimizer(metric=metric, prompt_model=sim.prompt_lm, max_metric_calls=150, verbose=False)
    return optimizer.compile(sim.task.program, trainset=sim.task.trainset, valset=sim.task.valset[:20])


def _gepa(sim: Simulation, metric: Any) -> dspy.Module:
    def five(gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> Any:
        return metric(gold, pred)

    optimizer = dspy.GEPA(metric=five, reflection_lm=sim.prompt_lm, max_metric_calls=150)
    return optimizer.compile(sim.task.program, trainset=sim.task.trainset, valset=sim.task.valset[:20])


def _copro(sim: Simulation, metric: Any) -> dspy.Module:
    optimizer = dspy.COPRO(metric=metric, prompt_model=sim.prompt_lm, breadth=3, depth=2)
    return optimizer.compile(
        sim.task.program, trainset=sim.task.trainset[:20], eval_kwargs={"num_threads": 1, "display_progress": False}
    )


def _mipro_zero_shot(sim: Simulation, metric: Any, demos: int = 0) -> dspy.Module:
    def passed(example: Any, prediction: Any, trace: Any = None) -> Any:
        judged = metric(example, prediction)
        return judged if trace is None else judged.score == 1

    optimizer = dspy.MIPROv2(
        metric=passed,
        prompt_model=sim.prompt_lm,
        task_model=sim.lm,
        auto=None,
        num_candidates=4,
        max_bootstrapped_demos=demos,
        max_labeled_demos=demos,
    )
    sets = {"trainset": sim.task.trainset, "valset": sim.task.valset[:20]}
    return optimizer.compile(sim.task.program, **sets, num_trials=3, minibatch=False)


def _mipro_with_demos(sim: Simulation, metric: Any) -> dspy.Module:
    return _mipro_zero_shot(sim, metric, demos=4)


def _simba(sim: Simulation, metric: Any) -> dspy.Module:
    optimizer = dspy.SIMBA(
        metric=metric, prompt_model=sim.prompt_lm, bsize=8, num_candidates=3, max_steps=2, max_demos=0
    )
    return optimizer.compile(sim.task.program, trainset=sim.task.trainset[:20])


@pytest.mark.parametrize("run", [_dlpo, _gepa, _copro, _mipro_zero_shot, _mipro_with_demos, _simba])
@pytest.mark.filterwarnings("ignore")  # DSPy's optimisers warn of their own affairs.
def test_every_optimiser_runs_on_the_simulator(
    run: Callable[[Simulation, Any], dspy.Module], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "dspy")
    sim = simulation("easy", seed=7)
    with dspy.context(lm=sim.lm, num_threads=1):
        program = run(sim, sim.task.metric)
    assert any(output_fields(system) != ["answer"] for system, _ in sim.prompt_lm.engine.log)
    accuracy = sim.program_accuracy(program)
    with dspy.context(lm=sim.lm):
        evaluated = fmean(sim.task.metric(each, program(**each.inputs())).score for each in sim.task.testset)
    assert 0.1 < accuracy < 1 and evaluated == pytest.approx(accuracy, abs=0.12)


def test_the_number_of_threads_does_not_change_a_run() -> None:
    def tuned(num_threads: int) -> str:
        sim = simulation("easy", seed=7)
        optimizer = DLPOOptimizer(
            metric=sim.task.metric,
            prompt_model=sim.prompt_lm,
            max_metric_calls=150,
            num_threads=num_threads,
            verbose=False,
        )
        with dspy.context(lm=sim.lm):
            program = optimizer.compile(sim.task.program, trainset=sim.task.trainset, valset=sim.task.valset[:20])
        return str(program.signature.instructions)

    assert tuned(1) == tuned(4)
