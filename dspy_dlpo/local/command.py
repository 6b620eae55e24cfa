"""The command of `dspy-dlpo` that tries the optimiser on a real model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dspy_dlpo.core.visible import visible
from dspy_dlpo.local import quickstart as orders
from dspy_dlpo.views.command import app

__all__ = ["app"]


@app.command()
def quickstart(
    log_dir: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/quickstart"),
    model: Annotated[
        str | None, typer.Option(help="The program's model, as DSPy names it. Default: one on this machine.")
    ] = None,
    prompt_model: Annotated[str | None, typer.Option(help="Criticises and proposes. Default: the same.")] = None,
    max_metric_calls: Annotated[int, typer.Option(min=1, help="Most runs of the program while optimising.")] = 80,
    num_threads: Annotated[
        int | None, typer.Option(min=1, help="Runs in flight at once. Default: 16 on this machine, else 8.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the run.")] = 0,
) -> None:
    """Tune a small program, by default on a language model on this machine: no account, no server."""
    orders.quickstart(
        model,
        prompt_model,
        max_metric_calls=max_metric_calls,
        num_threads=num_threads,
        seed=seed,
        log_dir=log_dir,
        say=lambda text: typer.echo(visible(text)),
    )
