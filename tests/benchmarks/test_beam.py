from __future__ import annotations

import dspy
import pytest

from dspy_dlpo.benchmarks.compare import Setting
from dspy_dlpo.benchmarks.job import CountedMetric
from dspy_dlpo.benchmarks.rivals.beam import _Search, beam_search
from dspy_dlpo.core.records import Candidate
from tests.small_task import CODES, INSTRUCTION, meaning, setup


def search(setting: Setting, max_metric_calls: int, **options: int) -> tuple[dspy.Module, list[int], int]:
    task, metric = setting.task, CountedMetric(setting.task.metric)
    with dspy.context(lm=setting.lm):
        program, bests = beam_search(
            task.program,
            list(task.trainset),
            list(task.valset),
            metric=metric,
            prompt_lm=setting.lm,
            max_metric_calls=max_metric_calls,
            **{"beam": 2, "batch": 4, "seed": 0, "num_threads": 1, **options},
        )
    return program, [calls for calls, _ in bests], metric.calls


@pytest.mark.parametrize("budget", [45, 60, 90, 200])
def test_the_budget_is_never_exceeded(budget: int) -> None:
    _, rounds, calls = search(setup(), budget)
    assert calls <= budget
    assert rounds == sorted(rounds)
    assert rounds[-1] <= budget - 2 * 20  # What choosing among the last beam may take.


def test_the_beam_learns_the_rules_that_the_feedback_tells() -> None:
    program, _, _ = search(setup(), 400)
    assert all(meaning(code) in program.signature.instructions for code in range(CODES))


def test_every_edited_prompt_is_paraphrased() -> None:
    setting = setup()
    search(setting, 90)
    asked = [system for system, _ in setting.lm.engine.log]
    assert any("Generate a variation of the instruction" in system for system in asked)
    assert any("Write the requirements that the instruction lacks" in system for system in asked)
    assert any("Edit the instruction so that" in system for system in asked)


def test_the_student_is_returned_if_nothing_can_be_learnt() -> None:
    setting = setup()
    with dspy.context(lm=setting.lm):
        program, _ = beam_search(
            setting.task.program,
            list(setting.task.trainset),
            list(setting.task.valset),
            metric=lambda example, prediction, trace=None: 1.0,
            prompt_lm=setting.lm,
            max_metric_calls=400,
            beam=2,
            batch=4,
            seed=0,
            num_threads=1,
        )
    assert program.signature.instructions == setting.task.program.signature.instructions


def test_further_pulls_go_to_the_prompts_that_did_best() -> None:
    task, lm = setup().task, setup().lm
    texts = [INSTRUCTION, task.human["self"], f"{INSTRUCTION} Be brief.", f"{INSTRUCTION} Be polite."]
    with dspy.context(lm=lm):
        arms = _Search(task.program, list(task.trainset), list(task.valset), task.metric, lm, 200, 4, 0, 1)
        pool = [Candidate({"self": text}) for text in texts]
        arms.pull(pool)
    asked = [sum(text in system for system, _ in lm.engine.log) for text in texts[1:]]
    assert asked[0] > max(asked[1:])
    assert arms.leaders(pool)[0] is pool[1]
