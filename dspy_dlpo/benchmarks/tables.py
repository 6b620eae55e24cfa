"""What a comparison shows, with intervals: scores, differences, calls to a target, costs; as tables and pictures."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from dspy_dlpo.benchmarks.cells import Cell
from dspy_dlpo.benchmarks.extras import extra
from dspy_dlpo.runtime.prices import dollars

CONFIDENCE = 0.95
_SHOWN = {
    **{name: name for name in ("optimiser", "seeds", "test score", "difference")},
    "calls to target": "to target",
    "metric calls": "calls",
    "dollars": "dollars",
}
"""What a terminal has room for, with the headings there; the files have all columns."""

_FORMULA = ("=", "+", "-", "@")
"""How a text begins that a spreadsheet would compute."""


@dataclass(frozen=True)
class Mean:
    """A mean over seeds with its interval (Student's t); the ends are None for a single seed."""

    value: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, values: Sequence[float], least: float = 0.0) -> Mean:
        """Return the mean of at least one value, one a seed; each, and so the mean, is from `least` to 1."""
        value = fmean(values)
        if len(values) < 2:
            return cls(value, None, None)
        t = extra("scipy.stats").t  # Takes a second to import.
        half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * stdev(values) / len(values) ** 0.5
        return cls(value, max(value - half, least), min(value + half, 1.0))

    @property
    def is_sure(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    def text(self, sign: str = "") -> str:
        """Return it in points, that is, times 100.

        >>> Mean(0.5, 0.4, 0.6).text(), Mean(0.5, None, None).text("+")
        ('50.0 (40.0 to 60.0)', '+50.0')
        """
        parts = [f"{100 * each:{sign}.1f}" for each in (self.value, self.low, self.high) if each is not None]
        return parts[0] if len(parts) == 1 else f"{parts[0]} ({parts[1]} to {parts[2]})"


@dataclass(frozen=True)
class Row:
    """One optimiser on one task with one budget, over its seeds.

    Attributes:
        task: Name of the task.
        optimizer: Name of the optimiser.
        max_metric_calls: The budget.
        num_seeds: Runs that came to an end.
        score: Test score, from 0 to 1.
        difference: Score less that of the reference, on the seeds that both have; None for the reference itself.
        target: Test score to be reached; None if no optimiser has a score.
        calls_to_target: Median over the seeds of the metric calls after which the best so far reached the target; None
            if half of the seeds never did, or there are no curves.
        reached: Share of the seeds that reached it; None without curves.
        metric_calls: Mean number that was made.
        lm_calls: The same of LM calls.
        tokens: The same of tokens, sent and received.
        cost: Mean dollars; None if a price is unknown.
        seconds: Mean wall time.
        prompt_tokens: Mean length of the result.
        remark: What was skipped or failed, and why; or that a difference is not sure.
    """

    task: str
    optimizer: str
    max_metric_calls: int
    num_seeds: int
    score: Mean | None = None
    difference: Mean | None = None
    target: float | None = None
    calls_to_target: float | None = None
    reached: float | None = None
    metric_calls: float | None = None
    lm_calls: float | None = None
    tokens: float | None = None
    cost: float | None = None
    seconds: float | None = None
    prompt_tokens: float | None = None
    remark: str = ""


def rows(
    cells: Iterable[Cell], *, reference: str = "dlpo", share: float = 0.95, target: float | None = None
) -> list[Row]:
    """Summarise the cells of each task, budget and optimiser over the seeds, in order of appearance.

    Args:
        cells: The cells.
        reference: The optimiser that the others are compared with, seed by seed.
        share: The target is this share of the highest mean score that any optimiser reached on the task, whatever its
            budget. `human` does not count, for it is not the result of a search.
        target: A target of one's own instead, a test score from 0 to 1.
    """
    groups: dict[tuple[str, int, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.task, cell.max_metric_calls, cell.optimizer), []).append(cell)
    means: dict[str, list[float]] = {}
    for (task, _, optimizer), group in groups.items():
        if optimizer != "human" and (scores := [*_scores(group).values()]):
            means.setdefault(task, []).append(fmean(scores))
    return [
        _row(
            group,
            groups.get((task, budget, reference), []) if optimizer != reference else [],
            share * max(means[task]) if target is None and task in means else target,
        )
        for (task, budget, optimizer), group in groups.items()
    ]


def _row(group: Sequence[Cell], reference: Sequence[Cell], target: float | None) -> Row:
    first, runs = group[0], [cell for cell in group if cell.score is not None]
    remarks = []
    for said in ("skipped", "failed"):
        reasons = [getattr(cell, said) for cell in group if getattr(cell, said)]
        if reasons:
            remarks.append(f"{said}{f' {len(reasons)} of {len(group)}' if runs else ''}: {reasons[0]}")
    if not runs:
        return Row(first.task, first.optimizer, first.max_metric_calls, 0, remark=" ".join(remarks))
    own, other = _scores(runs), _scores(reference)
    both = [seed for seed in own if seed in other]
    difference = Mean.of([own[seed] - other[seed] for seed in both], least=-1.0) if both else None
    if difference and not difference.is_sure:
        remarks.append("no sure difference")
    calls = [calls_to(cell, target) for cell in runs if cell.curve] if target is not None else []
    middle = median(calls) if calls else math.inf
    costs = [cell.cost for cell in runs if cell.cost is not None]
    return Row(
        first.task,
        first.optimizer,
        first.max_metric_calls,
        len(runs),
        score=Mean.of([*own.values()]),
        difference=difference,
        target=target,
        calls_to_target=middle if middle < math.inf else None,
        reached=sum(number < math.inf for number in calls) / len(calls) if calls else None,
        metric_calls=fmean(cell.metric_calls for cell in runs),
        lm_calls=fmean(cell.lm_calls for cell in runs),
        tokens=fmean(cell.tokens for cell in runs),
        cost=fmean(costs) if len(costs) == len(runs) else None,
        seconds=fmean(cell.seconds for cell in runs),
        prompt_tokens=fmean(cell.prompt_tokens for cell in runs),
        remark="; ".join(remarks),
    )


def _scores(cells: Iterable[Cell]) -> dict[int, float]:
    return {cell.seed: cell.score for cell in cells if cell.score is not None}


def calls_to(cell: Cell, target: float) -> float:
    """Return the metric calls after which the best so far of a run first reached a test score, infinite if never."""
    return next((calls for calls, score in cell.curve if score >= target), math.inf)


def _words(row: Row) -> dict[str, str]:
    """Return a row as cells of a table, by heading."""

    def number(value: float | None, digits: int = 0) -> str:
        return "" if value is None else f"{value:,.{digits}f}"

    seen = row.score is not None
    return {
        "task": row.task,
        "budget": number(row.max_metric_calls),
        "optimiser": row.optimizer,
        "seeds": number(row.num_seeds),
        "test score": row.score.text() if row.score else "",
        "difference": row.difference.text("+") if row.difference else "",
        "calls to target": "" if row.reached is None else number(row.calls_to_target) or "-",
        "reached": "" if row.reached is None else f"{row.reached:.0%}",
        "metric calls": number(row.metric_calls),
        "LM calls": number(row.lm_calls),
        "tokens": number(row.tokens),
        "dollars": "" if not seen else "unknown" if row.cost is None else dollars(row.cost),
        "seconds": number(row.seconds, 1),
        "prompt tokens": number(row.prompt_tokens),
        "remark": row.remark,
    }


def to_markdown(table: Sequence[Row]) -> str:
    """Return the rows as a markdown table; scores and differences in points."""
    words = [{name: _one_line(cell) for name, cell in _words(row).items()} for row in table]
    headings = [*words[0]] if words else []
    lines = [headings, ["---"] * len(headings), *([*each.values()] for each in words)]
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


def to_text(table: Sequence[Row]) -> str:
    """Return the rows for the terminal: a table for each task and budget, with the columns that matter most.

    The remarks stand below, each in a line of its own.
    """
    groups: dict[str, list[Row]] = {}
    for row in table:
        groups.setdefault(f"{row.task}, budget {row.max_metric_calls:,}", []).append(row)
    parts = [
        [_one_line(title), *_columns([_words(row) for row in rows]), *_remarks(rows)] for title, rows in groups.items()
    ]
    return "\n".join("".join(f"{line}\n" for line in part) for part in parts)


def _columns(words: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the cells of the most important columns, one line a row, each column as wide as it must be."""
    lines = [[*_SHOWN.values()], *([_one_line(each[name]) for name in _SHOWN] for each in words)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def _remarks(rows: Sequence[Row]) -> list[str]:
    return [f"  {_one_line(row.optimizer)}: {_one_line(row.remark)}" for row in rows if row.remark]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def to_json(table: Sequence[Row]) -> str:
    """Return the rows as JSON, in full precision."""
    return json.dumps([asdict(row) for row in table], indent=1)


def to_csv(table: Sequence[Row]) -> str:
    """Return the rows as CSV, in full precision; an interval takes three columns."""
    flat = [{name: _inert(value) for name, value in _flat(asdict(row))} for row in table]
    file = StringIO()
    writer = csv.DictWriter(file, [*dict.fromkeys(name for row in flat for name in row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return file.getvalue()


def _inert(value: Any) -> Any:
    """Return a text on one line and as no formula: it may be an error message, with whatever a model said."""
    if not isinstance(value, str):
        return value
    text = _one_line(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _flat(row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        if isinstance(value, dict):
            yield from ((name if end == "value" else f"{name}_{end}", number) for end, number in value.items())
        else:
            yield name, value


def average_curve(cells: Sequence[Cell]) -> list[tuple[int, Mean]]:
    """Return the mean over seeds of the best so far, at every number of metric calls where a run's changes."""
    runs = [cell for cell in cells if cell.curve]
    steps = sorted({calls for cell in runs for calls, _ in cell.curve})
    return [(calls, Mean.of([_at(cell, calls) for cell in runs])) for calls in steps]


def _at(cell: Cell, calls: int) -> float:
    return [score for number, score in cell.curve if number <= calls][-1]


def draw(cells: Iterable[Cell], path: str | Path) -> None:
    """Draw the best so far against metric calls, with intervals: one panel for each task and budget.

    Args:
        cells: The cells.
        path: The file; its ending says the form (`.png`, `.svg`, `.pdf`).

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If no cell has a score.
    """
    panels: dict[tuple[str, int], dict[str, list[Cell]]] = {}
    for cell in cells:
        if cell.score is not None and cell.curve:
            panel = panels.setdefault((cell.task, cell.max_metric_calls), {})
            panel.setdefault(cell.optimizer, []).append(cell)
    if not panels:
        raise ValueError("`cells` must hold at least one with a curve. Run the comparison with curves=True.")
    names = [*dict.fromkeys(name for panel in panels.values() for name in panel)]
    figure = extra("matplotlib.figure").Figure(figsize=(6 * len(panels) + 1, 4.5), layout="constrained")
    handles: dict[str, Any] = {}
    for axes, ((task, budget), panel) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        for name, group in panel.items():
            curve = average_curve(group)
            calls = [number for number, _ in curve]
            color = f"C{names.index(name) % 10}"
            style = "-" if names.index(name) < 10 else "--"
            if calls[-1] == 0:  # Nothing was optimised.
                axes.axhline(curve[-1][1].value, color=color, linestyle=":", label=name)
                continue
            axes.step(calls, [mean.value for _, mean in curve], style, where="post", color=color, label=name)
            ends = [[mean.value if end is None else end for end in (mean.low, mean.high)] for _, mean in curve]
            axes.fill_between(calls, *zip(*ends, strict=True), step="post", color=color, alpha=0.15, linewidth=0)
        axes.set(title=f"{task}, budget {budget}", xlabel="metric calls", ylabel="test score of the best so far")
        handles.update(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside right center")
    figure.savefig(path)


def write(cells: Sequence[Cell], folder: str | Path, **options: Any) -> list[Path]:
    """Write the comparison into a folder: `table.md`, `table.csv`, `table.json`, `curves.png` and `curves.svg`.

    Args:
        cells: The cells.
        folder: Where to.
        options: For `rows`.

    Returns:
        The files.
    """
    table = rows(cells, **options)
    texts = {"table.md": to_markdown(table), "table.csv": to_csv(table), "table.json": to_json(table)}
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        Path(folder, name).write_text(text)
    pictures = ["curves.png", "curves.svg"] if any(cell.curve for cell in cells) else []
    for name in pictures:
        draw(cells, Path(folder, name))
    return [Path(folder, name) for name in (*texts, *pictures)]
