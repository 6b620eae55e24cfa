from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import dspy
import pytest

from dspy_dlpo import DLPOResult
from dspy_dlpo.core.steps import Outcome
from dspy_dlpo.descent.outcome import NOT_ENDED
from tests.scripted import Oracle, examples


@pytest.fixture
def result(lm: dspy.LM, make: Any) -> DLPOResult:
    return make(num_steps=6).compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results


@pytest.fixture
def ax() -> Any:
    from matplotlib.figure import Figure

    return Figure().add_subplot()


def test_table_has_a_row_for_each_step_with_its_numbers_and_decision(result: DLPOResult) -> None:
    table = result.to_pandas().iloc[:-1]
    assert list(table["step"]) == [record.step for record in result.history]
    assert list(table["outcome"]) == [record.outcome for record in result.history]
    assert list(table["metric_calls"]) == [record.spent.metric_calls for record in result.history]
    first = result.history[0]
    assert first.trial is not None
    row = table.iloc[0]
    assert (row["trial_gain"], row["trial_examples"]) == (first.trial.gain, len(first.trial.differences))
    assert row["temperature"] == first.trial.threshold.because["temperature"]
    assert row["num_edits"] == 4


def test_last_row_of_the_table_is_the_final_choice(result: DLPOResult) -> None:
    row = result.to_pandas().iloc[-1]
    assert (row["step"], row["outcome"]) == (len(result.history), "final choice")
    assert row["best_score"] == result.val_aggregate_scores[result.best_idx]
    assert (row["best"], row["metric_calls"]) == (result.best.id, result.spent.metric_calls)


def test_table_of_a_run_that_did_not_end_has_no_final_row(result: DLPOResult) -> None:
    assert len(replace(result, stopped=NOT_ENDED).to_pandas()) == len(result.history)


def test_columns_begin_with_the_step_and_its_outcome_and_are_the_same_without_any_trial(result: DLPOResult) -> None:
    columns = list(result.to_pandas().columns)
    assert columns[:5] == ["step", "outcome", "score", "loss", "best_score"]
    assert columns[-2:] == ["draw", "must help"]
    skipped = (replace(result.history[0], trial=None, skipped=Outcome.NO_GRADIENT),)
    assert list(replace(result, history=skipped).to_pandas().columns) == columns[:-2]


@pytest.mark.parametrize("x", ["step", "metric_calls", "lm_calls", "tokens", "seconds"])
def test_plot_draws_the_scores_over_steps_or_spending(result: DLPOResult, ax: Any, x: str) -> None:
    assert result.plot(ax, x=x) is ax
    incumbent, best = ax.get_lines()
    assert list(incumbent.get_ydata()) == [record.score for record in result.history]
    final = result.val_aggregate_scores[result.best_idx]
    assert list(best.get_ydata()) == [0.0, *(record.best_score for record in result.history), final]
    spent = [record.step + 1 if x == "step" else getattr(record.spent, x) for record in result.history]
    assert list(best.get_xdata()) == [0, *spent, len(spent) + 1 if x == "step" else getattr(result.spent, x)]
    marked = sum(len(each.get_offsets()) for each in ax.collections)
    assert marked == sum(record.trial is not None for record in result.history)


def test_candidates_stand_where_their_gain_puts_them_and_within_the_range_of_scores(
    result: DLPOResult, ax: Any
) -> None:
    result.plot(ax)
    places = sorted((x, y) for each in ax.collections for x, y in each.get_offsets())
    tried = [record for record in result.history if record.trial is not None]
    assert [y for _, y in places] == pytest.approx(
        [min(max(record.score + record.trial.gain, 0), 1) for record in tried if record.trial]
    )
    assert {y for _, y in places} != {record.score for record in tried}


def test_plot_makes_a_figure_of_its_own_if_none_is_given(result: DLPOResult) -> None:
    from matplotlib import pyplot

    pyplot.switch_backend("agg")
    figure = result.plot().figure
    assert pyplot.get_fignums() == [figure.number]
    pyplot.close(figure)


@pytest.mark.parametrize(("x", "message"), [("epochs", "`x` must be one of"), ("cost", "if a price is unknown")])
def test_axis_that_cannot_be_drawn_is_refused(result: DLPOResult, ax: Any, x: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        result.plot(ax, x=x)


@pytest.mark.parametrize(("package", "method"), [("pandas", "to_pandas"), ("matplotlib", "plot")])
def test_missing_package_names_the_command_that_installs_it(
    result: DLPOResult, monkeypatch: pytest.MonkeyPatch, package: str, method: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"pip install 'dspy-dlpo\[plot\]'"):
        getattr(result, method)()
