"""The geometry of the charts: everything in percent of the plot, so that a chart is as wide as its page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dspy_dlpo.descent.outcome import RunResult
from dspy_dlpo.views.report.view import StepView


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
    """A chart from the student over the steps to the final choice: over the rows of the table of numbers.

    Attributes:
        title: What it shows.
        lines: Its lines.
        marks: Points `(x, y, kind)` in percent; the kind is the outcome of a step, or `final`.
        left: Labels of the vertical axis, from the top.
        right: Labels of a second one; empty if there is none.
        columns: The columns of the table of numbers that it shows, for its tooltip.
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
    end = [None] if result.has_ended else []
    places = _places([None, *(step.score for step in steps), *end], low, high)
    bests = [result.score_before, *(step.record.best_score for step in steps), *(result.score_after for _ in end)]
    best = _places(bests, low, high)
    known = (step for step in steps if step.score is not None)
    marks: list[tuple[float, float, str]] = [(x, y, step.outcome) for (x, y), step in zip(places, known, strict=True)]
    if end and best:
        marks.append((*best[-1], "final"))
    return Chart(
        "Score and loss",
        (Line("minibatch", _path(places)), Line("best", _stairs(best))),
        tuple(f"{tick:.3g}" for tick in ticks),
        ("outcome", "score", "loss", "gain", "best"),
        right=tuple(f"{high - tick:.3g}" for tick in ticks),
        marks=tuple(marks),
    )


def schedules(result: RunResult, steps: Sequence[StepView]) -> list[Chart]:
    """Show what was scheduled: temperature and cap on edits, where they changed in the course of the run."""
    scheduled: dict[str, tuple[str, list[float | None], Callable[[float], str]]] = {
        "temperature": ("Temperature", [step.temperature for step in steps], lambda value: f"{value:.2g}"),
        "max_edits": ("Most edits a step", [step.max_edits for step in steps], lambda value: f"{value:g}"),
    }
    return [
        _rising(title, column, [None, *values, *([None] if result.has_ended else [])], label)
        for column, (title, values, label) in scheduled.items()
        if len({value for value in values if value is not None}) > 1
    ]


def _rising(title: str, column: str, values: Sequence[float | None], label: Callable[[float], str]) -> Chart:
    """Return a chart from 0 to a round number above the highest value, of which one at least is known."""
    known = [value for value in values if value is not None]
    top = _round_up(max(known))
    path = _path(_places(values, 0, top))
    return Chart(title, (Line(column, path),), (label(top), label(top / 2), "0"), (column,), total=label(known[-1]))


def _places(values: Sequence[float | None], low: float, high: float) -> list[tuple[float, float]]:
    """Return where the values are, side by side, without those that are not known."""
    last = max(len(values) - 1, 1)
    return [
        (round(100 * index / last, 2), round(100 * (high - value) / (high - low), 2))
        for index, value in enumerate(values)
        if value is not None and not math.isnan(value)
    ]


def _path(places: Sequence[tuple[float, float]]) -> str:
    # The stroke without length makes a dot of a single point.
    return "M" + " L".join(f"{x:g} {y:g}" for x, y in places) + " h0" if places else ""


def _stairs(places: Sequence[tuple[float, float]]) -> str:
    """Return a path that stays at each value until the next."""
    if not places:
        return ""
    (x, y), *rest = places
    return " ".join([f"M{x:g} {y:g} h0", *(f"H{x:g} V{y:g}" for x, y in rest)])


def _round_up(value: float) -> float:
    """Return the next of 1, 2, 4, 6, 10, 20, ..., which halve well.

    >>> [_round_up(value) for value in (0, 3, 0.013, 12345)]
    [1, 4.0, 0.02, 20000.0]
    """
    if value <= 0:
        return 1
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 6, 10) if step * power >= value * (1 - 1e-9))
