"""The geometry of the charts: everything in percent of the plot, so that a chart is as wide as its page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dspy_dlpo.descent.outcome import RunResult
from dspy_dlpo.runtime.prices import dollars
from dspy_dlpo.views.report.view import StepView
from dspy_dlpo.views.report.words import duration


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        name: What it shows; also how the style sheet knows it.
        path: Its points, as SVG has them, in percent from the left and from the top.
    """

    name: str
    path: str


@dataclass(frozen=True)
class Chart:
    """A chart over the steps.

    Attributes:
        title: What it shows.
        lines: Its lines.
        marks: Points `(x, y, outcome)` in percent.
        left: Labels of the vertical axis, from the top.
        right: Labels of a second one; empty if there is none.
        columns: The columns of the table of steps that it shows, for its tooltip.
        total: The last value, in words.
    """

    title: str
    lines: tuple[Line, ...]
    left: tuple[str, ...]
    columns: tuple[str, ...]
    right: tuple[str, ...] = ()
    marks: tuple[tuple[float, float, str], ...] = ()
    total: str = ""


def score_chart(result: RunResult, steps: Sequence[StepView]) -> Chart:
    """Show the incumbent's score on its minibatch, the best on the valset, and what came of each step."""
    low, high = result.score_range
    ticks = [high - (high - low) * quarter / 4 for quarter in range(5)]
    places = _places([step.score for step in steps], low, high)
    known = (step for step in steps if step.score is not None)
    return Chart(
        "Score and loss",
        (
            Line("minibatch", _path(places)),
            Line("best", _path(_places([step.record.best_score for step in steps], low, high))),
        ),
        tuple(f"{tick:.3g}" for tick in ticks),
        ("outcome", "score", "loss", "gain", "best"),
        right=tuple(f"{high - tick:.3g}" for tick in ticks),
        marks=tuple((x, y, step.outcome) for (x, y), step in zip(places, known, strict=True)),
    )


def schedules(steps: Sequence[StepView]) -> list[Chart]:
    """Show what was scheduled: temperature and cap on edits, where the run had them."""
    charts = [
        _rising("Temperature", "temperature", [step.temperature for step in steps], lambda value: f"{value:.2g}"),
        _rising("Most edits a step", "max_edits", [step.max_edits for step in steps], lambda value: f"{value:g}"),
    ]
    return [chart for chart in charts if chart.lines[0].path]


def spending_charts(steps: Sequence[StepView]) -> list[Chart]:
    """Show what was spent by the end of each step, dollars if they are known."""
    spent = [step.record.spent for step in steps]
    seconds = [each.seconds for each in spent]
    unit = next((unit for unit in (3600, 60) if seconds and seconds[-1] >= unit), 1)
    charts = [
        _rising("Metric calls", "metric_calls", [each.metric_calls for each in spent], _compact),
        _rising("LM calls", "lm_calls", [each.lm_calls for each in spent], _compact),
        _rising("Tokens", "tokens", [each.tokens for each in spent], _compact),
        _rising("Dollars", "cost", [each.cost for each in spent], dollars),
        _rising("Time", "seconds", seconds, duration, unit),
    ]
    return [chart for chart in charts if chart.lines[0].path]


def _rising(
    title: str, column: str, values: Sequence[float | None], label: Callable[[float], str], unit: float = 1
) -> Chart:
    """Return a chart from 0 to a round number of units above the highest value."""
    known = [value for value in values if value is not None]
    top = unit * _round_up(max(known, default=0) / unit)
    path = _path(_places(values, 0, top))
    total = label(known[-1]) if known else ""
    return Chart(title, (Line(column, path),), (label(top), label(top / 2), "0"), (column,), total=total)


def _places(values: Sequence[float | None], low: float, high: float) -> list[tuple[float, float]]:
    """Return where the values are, one a step, without those that are not known."""
    last = max(len(values) - 1, 1)
    return [
        (round(100 * index / last, 2), round(100 * (high - value) / (high - low), 2))
        for index, value in enumerate(values)
        if value is not None and not math.isnan(value)
    ]


def _path(places: Sequence[tuple[float, float]]) -> str:
    # The stroke without length makes a dot of a single point.
    return "M" + " L".join(f"{x:g} {y:g}" for x, y in places) + " h0" if places else ""


def _round_up(value: float) -> float:
    """Return the next of 1, 2, 4, 6, 10, 20, ..., which halve well.

    >>> [_round_up(value) for value in (0, 3, 0.013, 12345)]
    [1, 4.0, 0.02, 20000.0]
    """
    if value <= 0:
        return 1
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 6, 10) if step * power >= value * (1 - 1e-9))


def _compact(value: float) -> str:
    """Return a number in few letters.

    >>> _compact(12_500), _compact(2_000_000), _compact(50)
    ('12.5k', '2M', '50')
    """
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:g}"
