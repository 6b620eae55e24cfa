from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.lm15 import AuthError, TransportError

from dspy_dlpo.benchmarks.cells import CELLS, Cell, read_cells
from dspy_dlpo.benchmarks.compare import Setting, compare, run_cell
from dspy_dlpo.benchmarks.job import CountedMetric, Job, Outcome
from dspy_dlpo.benchmarks.rivals.registry import none
from dspy_dlpo.benchmarks.simulation.scripted import fields, simulated_lm
from dspy_dlpo.benchmarks.tables import rows, write
from dspy_dlpo.benchmarks.transfer import transfer
from tests.small_task import CODES, INSTRUCTION, examples, meaning, script, setup

RUN = partial(compare, {"codes": setup}, max_metric_calls=120, seeds=range(2), verbose=False)


def count_runs(job: Job, *, seeds: list[int]) -> Outcome:
    seeds.append(job.seed)
    return none(job)


def fail(job: Job, *, on: int) -> Outcome:
    if job.seed == on:
        raise RuntimeError("out of ideas\na row of the data set")
    return none(job)


def with_demos(job: Job) -> Outcome:
    program = job.program
    program.demos = [job.task.trainset[7], dspy.Example(augmented=True, question="nobody asked", answer="w0")]
    return Outcome(program)


def ask(job: Job) -> Outcome:
    for _ in range(2):
        job.program(question="0: What does code K0 mean?")
    return none(job)


def test_finished_cells_are_not_run_again(tmp_path: Path) -> None:
    seeds: list[int] = []
    rivals = {"mine": partial(count_runs, seeds=seeds)}
    first = RUN(rivals, folder=tmp_path)
    again = RUN(rivals, folder=tmp_path)
    assert seeds == [0, 1]
    assert again == first
    RUN(rivals, folder=tmp_path, seeds=range(3))
    assert seeds == [0, 1, 2]


def test_cut_short_it_has_all_optimisers_on_the_first_seeds(tmp_path: Path) -> None:
    cells = RUN({"one": none, "two": none}, folder=tmp_path)
    assert [(cell.seed, cell.optimizer) for cell in cells] == [(0, "one"), (0, "two"), (1, "one"), (1, "two")]
    assert read_cells(tmp_path) == cells


def test_a_torn_last_line_is_cut_off_and_its_cell_run_again(tmp_path: Path) -> None:
    seeds: list[int] = []
    rivals = {"mine": partial(count_runs, seeds=seeds)}
    first = RUN(rivals, folder=tmp_path)
    path = tmp_path / CELLS
    path.write_text(path.read_text()[:-30])
    again = RUN(rivals, folder=tmp_path)
    assert seeds == [0, 1, 1]
    assert [cell.key for cell in again] == [cell.key for cell in first]
    assert len(read_cells(tmp_path)) == 2


def test_a_line_that_is_no_cell_is_named(tmp_path: Path) -> None:
    (tmp_path / CELLS).write_text('{"task": "codes"}\n')
    with pytest.raises(ValueError, match=r"cells\.jsonl:1 is no result of a comparison"):
        read_cells(tmp_path)


def test_a_failed_cell_does_not_end_the_others_and_is_run_again(tmp_path: Path) -> None:
    cells = RUN({"mine": partial(fail, on=0)}, folder=tmp_path)
    assert [cell.failed for cell in cells] == ["RuntimeError: out of ideas", ""]
    again = RUN({"mine": partial(fail, on=7)}, folder=tmp_path)
    assert [cell.score for cell in again] == [0.0, 0.0]
    assert [cell.failed for cell in read_cells(tmp_path)] == ["", ""]


def test_another_process_gives_the_same_cell(tmp_path: Path) -> None:
    (one,) = RUN(["copro"], folder=tmp_path / "one", seeds=[1])
    (two,) = RUN(["copro"], folder=tmp_path / "two", seeds=[1], num_workers=2)
    assert replace(two, seconds=0.0) == replace(one, seconds=0.0)


def test_calls_and_tokens_are_those_the_models_saw() -> None:
    setting = setup()
    cell = run_cell(Cell("codes", "copro", 120, 0), lambda seed: setting, ask)
    assert cell.lm_calls == 2
    assert cell.input_tokens == sum(
        len(system + user) for system, user in setting.lm.engine.log[:2]
    )  # Then comes testing.
    assert cell.cost == 0  # A simulated model.
    assert cell.metric_calls == 0


def test_a_result_holds_no_row_of_the_data(tmp_path: Path) -> None:
    (cell, *_) = RUN({"mine": with_demos}, folder=tmp_path)
    line = (tmp_path / CELLS).read_text()
    assert cell.demos == {"self": ["7", ""]}
    assert "What does" not in line
    assert "nobody asked" not in line
    assert json.loads(line.splitlines()[0])["prompt_tokens"] > cell.prompt_tokens / 2 > 5


def test_no_answer_comes_from_a_cache() -> None:
    setting = setup()
    setting = replace(setting, lm=setting.lm.copy(cache=True))
    for _ in range(2):
        assert run_cell(Cell("codes", "mine", 120, 0), lambda seed: setting, ask).lm_calls == 2


def test_a_score_that_is_known_costs_no_run() -> None:
    setting = replace(setup(), score=lambda program: len(program.signature.instructions) / 1000)
    cell = run_cell(Cell("codes", "none", 120, 0), lambda seed: setting, none)
    assert cell.score == len(INSTRUCTION) / 1000
    assert cell.scores == {}
    assert setting.lm.engine.log == []


def test_without_curves_only_the_result_is_tested() -> None:
    setting = setup()
    cell = run_cell(Cell("codes", "none", 120, 0), lambda seed: setting, none, curves=False)
    assert cell.curve == []
    assert len(cell.scores) == len(setting.task.testset) == len(setting.lm.engine.log)


def test_without_curves_there_is_a_table_but_no_calls_to_a_target(tmp_path: Path) -> None:
    def other_calls(job: Job) -> Outcome:
        for example in job.task.trainset[: 3 + job.seed]:
            job.metric(example, dspy.Prediction(answer=""))
        return none(job)

    cells = RUN({"mine": other_calls, "none": none}, folder=tmp_path, seeds=[0, 1], curves=False)
    files = write(cells, tmp_path, reference="none")
    assert [path.name for path in files] == ["table.md", "table.csv", "table.json"]
    assert [(row.calls_to_target, row.reached) for row in rows(cells)] == [(None, None)] * 2


def test_a_program_that_raised_has_no_prediction_and_scores_zero() -> None:
    metric = CountedMetric(setup().task.metric)
    assert metric(examples(1, 0)[0], None) == 0.0
    assert metric.calls == 1


def test_a_metric_that_fails_is_no_score_of_zero() -> None:
    def broken(example: dspy.Example, prediction: Any, trace: Any = None) -> float:
        raise RuntimeError("no such judge")

    setting = replace(setup(), task=replace(setup().task, metric=broken))
    cell = run_cell(Cell("codes", "none", 120, 0), lambda seed: setting, none)
    assert (cell.score, cell.failed) == (None, "RuntimeError: no such judge")


def test_results_with_other_settings_are_not_taken_for_those_asked_for(tmp_path: Path) -> None:
    RUN(["none"], folder=tmp_path, settings={"codes": {"model": "a"}})
    RUN(["human"], folder=tmp_path, settings={"codes": {"model": "a"}})
    with pytest.raises(ValueError, match=r"has results of codes with \{'model': 'a'\}, not \{'model': 'b'\}"):
        RUN(["none"], folder=tmp_path, settings={"codes": {"model": "b"}})


def unreachable(error: type[Exception]) -> Setting:
    def refuse(system: str, user: str) -> str:
        raise error("no answer")

    return replace(setup(), lm=simulated_lm(refuse))


def test_an_outage_is_no_score_of_zero() -> None:
    cell = run_cell(Cell("codes", "none", 120, 0), lambda seed: unreachable(TransportError), none)
    assert cell.score is None
    assert "no answer" in cell.failed


def test_an_error_that_no_retry_can_mend_ends_the_comparison(tmp_path: Path) -> None:
    with pytest.raises(dspy.LMAuthError, match="no answer"):
        compare({"codes": lambda seed: unreachable(AuthError)}, ["none"], folder=tmp_path, verbose=False)


def test_replies_that_cannot_be_parsed_score_zero() -> None:
    setting = replace(setup(), lm=simulated_lm(lambda system, user: "I would rather not."))
    setting = replace(setting, task=replace(setting.task, testset=examples(30, 100)))
    cell = run_cell(Cell("codes", "none", 120, 0), lambda seed: setting, none)
    assert (cell.score, cell.failed) == (0.0, "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_metric_calls": 0}, "`max_metric_calls` must be at least 1"),
        ({"num_workers": 0}, "`num_workers` must be at least 1"),
        ({"num_threads": 0}, "`num_threads` must be at least 1"),
    ],
)
def test_counts_below_one_are_refused(options: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        RUN(["none"], folder=tmp_path, **options)


def unreached(seed: int) -> Setting:
    raise AssertionError


def test_instructions_are_tested_on_another_task_and_model(tmp_path: Path) -> None:
    tuned = run_cell(Cell("codes", "human", 120, 0), setup, lambda job: Outcome(told(job, [0, 1])))

    def other(seed: int) -> Setting:
        testset = [dspy.Example(each, dspy_id=f"code-{number}") for number, each in enumerate(examples(CODES, 1000))]
        task = replace(setup().task, testset=testset)
        return Setting(task, simulated_lm(lambda system, user: script(system, user).replace("w0", "something else")))

    cells = [tuned, Cell("codes", "gepa", 120, 0, skipped="too small")]
    (cell,) = transfer(cells, {"other": other}, folder=tmp_path)
    assert transfer(cells, {"other": unreached}, folder=tmp_path) == [cell], "what the folder has is not run again"
    retuned = replace(tuned, instructions={"self": INSTRUCTION})
    assert transfer([retuned], {"other": other}, folder=tmp_path)[0].score == 0.0
    assert (cell.task, cell.optimizer, cell.seed) == ("other", "human from codes", 0)
    assert cell.scores == {"code-0": 0.0, "code-1": 1.0, "code-2": 0.0, "code-3": 0.0}
    assert cell.instructions == tuned.instructions


def told(job: Job, codes: list[int]) -> dspy.Module:
    program = job.program
    program.signature = program.signature.with_instructions(" ".join([INSTRUCTION, *map(meaning, codes)]))
    return program


def test_a_transfer_to_other_predictors_is_refused() -> None:
    tuned = run_cell(Cell("codes", "none", 120, 0), setup, none)

    def other(seed: int) -> Setting:
        return replace(setup(), task=replace(setup().task, program=Twice()))

    with pytest.raises(ValueError, match=r"predictors \['self'\], but other has others"):
        transfer([tuned], {"other": other})


def test_the_only_instruction_goes_to_the_only_predictor_whatever_its_name() -> None:
    tuned = run_cell(Cell("codes", "human", 120, 0), setup, lambda job: Outcome(told(job, [0, 1])))

    def other(seed: int) -> Setting:
        return replace(setup(), task=replace(setup().task, program=dspy.ChainOfThought("question -> answer")))

    (cell,) = transfer([tuned], {"other": other})
    assert cell.instructions == {"predict": tuned.instructions["self"]}


def test_a_transfer_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="`cells` must hold a result with a score"):
        transfer([], {"other": setup})


class Twice(dspy.Module):  # type: ignore[misc]  # DSPy is untyped.
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = dspy.Predict("question -> answer"), dspy.Predict("question -> answer")


def test_fields_of_the_small_task_are_read() -> None:
    assert fields(answer="w1") in script(f"Your output fields are:\n1. `answer` (str):\n{meaning(1)}", "code K1")
