"""The command `dspy-dlpo`: look at runs, and take programs out of them. Other folders add their own commands."""

from __future__ import annotations

import sys
import webbrowser
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import dspy
import typer
from pydantic_core import to_json
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from dspy_dlpo.core.visible import visible, visible_json
from dspy_dlpo.views.plots import FINAL
from dspy_dlpo.views.result import DLPOResult
from dspy_dlpo.views.runs import candidate_of, find_runs, load_result, program_state
from dspy_dlpo.views.words import (
    best_of,
    cost,
    ending_of,
    failing_of,
    gain_of,
    mishaps,
    models_of,
    resumed,
    scores_of,
    spending,
    started,
    took,
)


class _Commands(TyperGroup):
    """Tells errors that users can mend in one line, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, BrokenPipeError):  # Not errors, but also of the kinds below.
            raise
        except (OSError, ValueError, RuntimeError, ImportError, MemoryError, dspy.LMError) as error:
            typer.echo(f"dspy-dlpo: {_one_line(error)}", err=True)
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=_Commands,
    help="Look at the runs of DLPOOptimizer, take programs out of them, and try it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # Its tables give every flag a value, `--json <bool>`.
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Form(StrEnum):
    """What `export` writes."""

    PROGRAM = "program"
    TEXT = "text"


_COLUMNS = ("run", "program", "models", "began", "took", "steps", "before", "after", "gain", "cost", "ended")
Run = Annotated[Path, typer.Argument(help="The `log_dir` of a run.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dspy-dlpo {version('dspy-dlpo')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


@app.command()
def report(
    run: Run,
    output: Annotated[Path | None, typer.Option(help="The file. Default: report.html in the run's folder.")] = None,
    show: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Write a run as one HTML page, which needs no network."""
    from dspy_dlpo.views.report import save_report

    path = save_report(load_result(run), output or run / "report.html")
    typer.echo(path)
    if show:
        webbrowser.open(path.absolute().as_uri())


@app.command()
def show(run: Run, as_json: AsJson = False) -> None:
    """Show a run: its steps, the instructions it chose, the gain and the cost. JSON has everything."""
    result = load_result(run)
    if as_json:
        _print_json(result)
        return
    console = _console()
    console.print(f"{visible(result.run.program_name)} in {visible(str(run))}: {visible(ending_of(result))}")
    for name, said in _facts(result):
        console.print(f"{name:<9}{visible(said)}")
    console.print()
    console.print(_steps(result))
    for name, text in result.best_candidate.items():
        console.print(f"\n{visible(name)}:\n{visible(text)}", soft_wrap=True)
    before, after = scores_of(result)
    console.print(f"\nValset: {before} before, {after} after, gain {gain_of(result)}")
    console.print(f"Spent: {spending(result.spent)}")
    for said in mishaps(result):
        console.print(f"Mind: {said}")
    if failing := failing_of(result):
        console.print(f"\n{failing}", soft_wrap=True)


def _facts(result: DLPOResult) -> list[tuple[str, str]]:
    """Return what a run was made with, and when."""
    run = result.run
    facts = [("Models", models_of(run)), ("Began", started(run)), ("Took", took(run)), ("Resumed", resumed(run))]
    return [(name, said.removeprefix("resumed ")) for name, said in facts if said]


def _steps(result: DLPOResult) -> Table:
    """Return the steps and the final choice as a table."""
    table = Table("step", "score", "outcome", "gain", "examples", "best", "metric calls", "cost", box=None)
    for record in result.history:
        trial = record.trial
        table.add_row(
            str(record.step + 1),
            f"{record.score:.3f}",
            record.outcome,
            f"{trial.gain:+.3f}" if trial else "",
            str(len(trial.differences)) if trial else "",
            best_of(record, result.run),
            f"{record.spent.metric_calls}",
            cost(record.spent.cost),
        )
    if result.has_ended:
        end = ["end", "", FINAL, "", "", scores_of(result)[1], f"{result.spent.metric_calls}", cost(result.spent.cost)]
        table.add_row(*end)
    return table


@app.command()
def export(
    run: Run,
    step: Annotated[
        int | None,
        typer.Option(
            min=1, help="Take what this step tried, accepted or not; counted from 1, as `show` does. Default: the best."
        ),
    ] = None,
    form: Annotated[Form, typer.Option("--format", help="DSPy's JSON, or the instructions as text.")] = Form.PROGRAM,
    output: Annotated[Path | None, typer.Option(help="The file. Default: standard output.")] = None,
) -> None:
    """Take a program out of a run: JSON for `program.load`, or its instructions."""
    result = load_result(run)
    candidate = None if step is None else _tried(result, step)
    if candidate is None and not result.has_ended:
        what = "the best so far" if result.best_idx else "the student's own, since nothing was better so far"
        typer.echo(f"dspy-dlpo: {visible(str(run))} has not ended. This program is {what}.", err=True)
    if form is Form.PROGRAM:
        text = to_json(program_state(result, candidate), indent=2).decode()
    else:
        instructions = candidate_of(result, candidate).instructions
        parts = (f"[{name}]\n{text}" if len(instructions) > 1 else text for name, text in instructions.items())
        text = "\n\n".join(parts)
    if output:
        output.write_text(text + "\n", encoding="utf-8")
    else:
        typer.echo(visible(text) if sys.stdout.isatty() else text)


@app.command()
def runs(
    folder: Annotated[Path, typer.Argument(help="Runs in it, at any depth, are listed.")] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """List the runs under a folder. Those that cannot be read are listed with the reason."""
    if not folder.is_dir():
        raise FileNotFoundError(f"No folder {folder}. Give the folder that your runs are in.")
    found = [(path, _read(path)) for path in find_runs(folder)]
    if as_json:
        _print_json([_summary(path, result) for path, result in found])
        return
    if not found:
        raise FileNotFoundError(f"No runs in {folder}. Give the folder that your runs are in.")
    table = Table(*_COLUMNS, box=None)
    for path, result in found:
        table.add_row(*map(visible, [str(path.relative_to(folder)), *_cells(result)]))
    _console().print(table)


def _read(path: Path) -> DLPOResult | str:
    """Return a run, or why it cannot be read."""
    try:
        return load_result(path)
    except (OSError, ValueError, RuntimeError) as error:
        return _one_line(error)


def _cells(result: DLPOResult | str) -> list[str]:
    if isinstance(result, str):
        return [*[""] * (len(_COLUMNS) - 2), result]
    gain = f"{result.gain.mean:+.3f}" if result.gain.num_examples else "not measured"
    run, steps = result.run, str(len(result.history))
    made = [run.program_name, models_of(run), started(run), took(run)]
    return [*made, steps, *scores_of(result), gain, cost(result.spent.cost), ending_of(result)]


def _summary(path: Path, result: DLPOResult | str) -> dict[str, Any]:
    if isinstance(result, str):
        return {"run": str(path), "error": result}
    return {
        "run": str(path),
        "program": result.run.program_name,
        "steps": len(result.history),
        "before": result.score_before,
        "after": result.score_after,
        "gain": result.gain if result.gain.num_examples else None,
        "cost": result.spent.cost,
        "stopped": result.stopped,
        "models": result.run.models,
        "sessions": result.run.sessions,
    }


def _tried(result: DLPOResult, step: int) -> str:
    """Return the id of the candidate that a step, counted from 1, compared with the incumbent."""
    if step > len(result.history):
        raise ValueError(f"`--step` must be at most {len(result.history)}, the steps of the run, but got {step}.")
    trial = result.history[step - 1].trial
    if trial is None:
        raise ValueError(f"Step {step} tried nothing ({result.history[step - 1].outcome}). Give another step.")
    return trial.candidate


def _console() -> Console:
    """Return a console that takes no text for a command of rich's."""
    return Console(markup=False, emoji=False, highlight=False)


def _print_json(value: Any) -> None:
    typer.echo(visible_json(to_json(value, indent=2, inf_nan_mode="null").decode()))


def _one_line(error: BaseException) -> str:
    return visible(" ".join(str(error).split()) or type(error).__name__)
