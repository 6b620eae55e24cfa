"""A run as a table and as a picture, with pandas and matplotlib where they are installed."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dspy_dlpo.core.records import StepRecord
from dspy_dlpo.descent.outcome import RunResult

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes


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
    """Return the numbers and the decision of each step, by column; None where a step had none.

    What policies gave as reasons for the threshold (`temperature`, `draw`, ...) has columns of its own.
    """
    return [_row(record) for record in result.history]


def _row(record: StepRecord) -> dict[str, Any]:
    trial = record.trial
    edits = (each.edits for each in record.candidates if trial and each.id == trial.candidate)
    return {
        **(trial.threshold.because if trial else {}),
        "step": record.step,
        "score": record.score,
        "num_minibatch": len(record.minibatch),
        "num_failures": len(record.failures),
        "num_candidates": len(record.candidates),
        "num_edits": sum(len(each) for by_predictor in edits for each in by_predictor.values()),
        "gain": trial.gain if trial else None,
        "num_examples": len(trial.differences) if trial else 0,
        "threshold": trial.threshold.level if trial else None,
        "accepted": record.accepted,
        "outcome": record.outcome.value,
        "best": record.best,
        "best_score": record.best_score,
        **asdict(record.spent),
        "tokens": record.spent.tokens,
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
    ax.plot(places, [row["score"] for row in rows], color="0.6", label="incumbent, on the minibatch")
    bests = [
        result.val_aggregate_scores[0],
        *(row["best_score"] for row in rows),
    ]  # The student comes before all steps.
    ax.step([0, *places], bests, where="post", color="C0", label="best, on the valset")
    for accepted, marker, colour in ((True, "^", "C2"), (False, "x", "C3")):
        points = [
            (place, row["score"])
            for place, row in zip(places, rows, strict=True)
            if row["gain"] is not None and row["accepted"] == accepted
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
