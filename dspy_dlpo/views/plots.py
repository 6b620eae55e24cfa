"""A run as a table and as a picture, with pandas and matplotlib where they are installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dspy_dlpo.core.steps import StepRecord
from dspy_dlpo.descent.outcome import RunResult

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes


FINAL = "final choice"
"""The outcome in the last row of a table of steps: what the run returned."""

_EMPTY = StepRecord(0, "", (), 0.0)
_INSTALL = "Install the extra with: pip install 'dspy-dlpo[plot]'"
_AXES = {
    "step": "step",
    "metric_calls": "metric calls",
    "lm_calls": "LM calls",
    "tokens": "tokens",
    "seconds": "seconds of calls",
    "cost": "dollars",
}


def step_rows(result: RunResult) -> list[dict[str, Any]]:
    """Return what each step did, by column, and in a last row how the run ended; None where there is nothing to say.

    What policies gave as reasons for the threshold (`draw`, `pressure`, ...) has columns of its own, the last ones.
    """
    rows = [_row(record) for record in result.history]
    if rows and result.has_ended:
        end: dict[str, Any] = {**result.spent.figures(), "seconds": result.spent.seconds, "tokens": result.spent.tokens}
        end |= {"step": len(rows), "outcome": FINAL, "best": result.best.id, "best_score": result.score_after}
        end |= {"best_examples": result.num_val_examples[result.best_idx]}
        rows.append(dict.fromkeys(rows[0]) | end)
    columns = dict.fromkeys([*_row(_EMPTY), *(name for row in rows for name in row)])
    return [dict.fromkeys(columns) | row for row in rows]


def _row(record: StepRecord) -> dict[str, Any]:
    trial = record.trial
    edits = (each.edits for each in record.candidates if trial and each.id == trial.candidate)
    return {
        "step": record.step,
        "outcome": record.outcome.value,
        **record.figures(),
        "num_minibatch": len(record.minibatch),
        "num_failures": len(record.failures),
        "num_edits": sum(len(each) for by_predictor in edits for each in by_predictor.values()),
        "tokens": record.spent.tokens,
        "seconds": record.spent.seconds,
        "best": record.best,
        **{name: value for name, value in (trial.threshold.because if trial else {}).items() if name != "temperature"},
    }


def steps_table(result: RunResult) -> pandas.DataFrame:
    """Return `step_rows` as a table; `DLPOResult.to_pandas` documents it."""
    try:
        import pandas
    except ImportError as error:
        raise ImportError(f"A table needs pandas. {_INSTALL}") from error
    return pandas.DataFrame(step_rows(result))


def plot_scores(result: RunResult, ax: Axes | None, x: str) -> Axes:
    """Draw the scores of a run; `DLPOResult.plot` documents it."""
    if x not in _AXES:
        raise ValueError(f"`x` must be one of {sorted(_AXES)}, but got x={x!r}.")
    if x == "cost" and result.spent.cost is None:
        raise ValueError('`x` must not be "cost" if a price is unknown. Give `prices` to the optimiser.')
    try:
        from matplotlib import pyplot, ticker
    except ImportError as error:
        raise ImportError(f"A plot needs matplotlib. {_INSTALL}") from error
    if ax is None:
        ax = pyplot.subplots(layout="constrained")[1]
    rows = step_rows(result)
    places = [row["step"] + 1 if x == "step" else row[x] for row in rows]
    steps = [(place, row) for place, row in zip(places, rows, strict=True) if row["outcome"] != FINAL]
    scores = [row["score"] for _, row in steps]
    ax.plot([place for place, _ in steps], scores, color="0.6", label="incumbent, on the minibatch")
    bests = [result.score_before, *(row["best_score"] for row in rows)]  # The student comes before all steps.
    ax.step([0, *places], bests, where="post", color="C0", label="best, on the valset")
    low, high = result.score_range
    for accepted, marker, colour in ((True, "^", "C2"), (False, "x", "C3")):
        points = [  # Where the candidate is: above or below the incumbent by the gain of its trial.
            (place, min(max(row["score"] + row["trial_gain"], low), high))
            for place, row in steps
            if row["trial_gain"] is not None and row["accepted"] == accepted
        ]
        if points:
            label = "candidate accepted" if accepted else "candidate refused"
            ax.scatter(*zip(*points, strict=True), marker=marker, color=colour, zorder=3, label=label)
    ax.set_xlabel(_AXES[x])
    ax.set_ylabel("score")
    if x == "step":
        ax.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    ax.legend()
    return ax
