"""The commands `dspy-dlpo demo` and `bench`, and with them the whole: this module imports those that add the others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from dspy_dlpo.core.visible import visible, visible_json
from dspy_dlpo.local.command import app
from dspy_dlpo.views.command import AsJson

__all__ = ["app"]


@app.command()
def demo(
    log_dir: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Of the run.")] = 0,
) -> None:
    """Show a whole run in seconds on a SIMULATED model: no account, no download. Writes the report."""
    from dspy_dlpo.benchmarks.demo import demo as simulate

    simulate(log_dir, seed=seed, say=lambda text: typer.echo(visible(text)))


@app.command()
def bench(
    tasks: Annotated[
        list[str] | None, typer.Argument(help="gsm8k, bbh/SUBTASK, ..., or simulated/easy, /medium, /hard.")
    ] = None,
    optimizer: Annotated[
        list[str] | None,
        typer.Option(
            help="dlpo, dlpo:PRESET, dlpo+demos, copro, mipro, simba, gepa, ..., or ablation for our strategies one by "
            "one; give it several times. Default: dlpo and none."
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            help="Where results are kept; what it has is not run again. Default: runs/bench, or FROM/transfer."
        ),
    ] = None,
    budget: Annotated[list[int] | None, typer.Option(min=1, help="Metric calls; several are allowed.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 3,
    model: Annotated[
        str | None, typer.Option(help="The programs' model, as DSPy names it; local is the one on this machine.")
    ] = None,
    prompt_model: Annotated[str | None, typer.Option(help="Criticises and proposes. Default: the same.")] = None,
    tuned: Annotated[
        Path | None,
        typer.Option(
            "--from", exists=True, help="Optimise nothing: test the programs of this folder on the tasks and the model."
        ),
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of JSON lines. Default: data from the hub.")] = None,
    sizes: Annotated[
        tuple[int, int, int] | None, typer.Option(help="Train, validation and test examples. Default: the task's own.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="The optimiser that the others are compared with. Default: dlpo.")
    ] = None,
    target: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Test score for `calls to target`. Default: 95 % of the best mean score of the task."
        ),
    ] = None,
    latency: Annotated[float, typer.Option(min=0, help="Seconds that a simulated model takes to answer.")] = 0.0,
    curves: Annotated[bool, typer.Option(help="Whether what was best on the way is tested too.")] = True,
    num_threads: Annotated[
        int, typer.Option(min=1, help="Program runs in flight at once; the model on this machine is fastest with 16.")
    ] = 1,
    num_workers: Annotated[int, typer.Option(min=1, help="Comparisons side by side, in processes.")] = 1,
    ray: Annotated[
        bool, typer.Option("--ray", help="Run the comparisons on a Ray cluster; RAY_ADDRESS names it.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare optimisers on benchmark tasks: same splits, models and budget. By default on a simulated one, offline."""
    from dspy_dlpo.benchmarks import tables
    from dspy_dlpo.benchmarks.cells import read_cells
    from dspy_dlpo.benchmarks.compare import compare
    from dspy_dlpo.benchmarks.extras import extra
    from dspy_dlpo.benchmarks.rivals.registry import ablation, rival_named
    from dspy_dlpo.benchmarks.setups import settings_of, setup_named
    from dspy_dlpo.benchmarks.transfer import transfer
    from dspy_dlpo.runtime.executor import opened

    names = tasks or ["simulated/medium"]
    sharing = 1 if tuned else num_workers  # A transfer runs in this process alone.
    setups = {name: setup_named(name, model, prompt_model, data_dir, sizes, latency, sharing) for name in names}
    groups = [ablation() if name == "ablation" else [name] for name in optimizer or ["dlpo", "none"]]
    optimizers = [name for group in groups for name in group]
    for name in optimizers:
        rival_named(name)  # A wrong name is refused before anything takes time.
    if tuned is None:
        _check_reference(reference, optimizers)
    for package in ("scipy.stats", "matplotlib.figure"):
        extra(package)  # Not found missing when all is paid for.
    for setup in setups.values():
        setup(0)  # Nor a wrong folder.
    settings = {name: settings_of(name, model, prompt_model, data_dir, sizes) for name in names}
    folder = folder or (tuned / "transfer" if tuned else Path("runs/bench"))
    if tuned is not None:
        cells = transfer(read_cells(tuned), setups, folder=folder, settings=settings, num_threads=num_threads)
    else:
        with opened("ray" if ray else None) as executor:
            cells = compare(
                setups,
                optimizers,
                folder=folder,
                settings=settings,
                max_metric_calls=budget or 300,
                seeds=range(seeds),
                num_threads=num_threads,
                num_workers=num_workers,
                curves=curves,
                executor=executor,
            )
    _check_reference(reference, [cell.optimizer for cell in cells])
    rows = tables.rows(cells, reference=reference or "dlpo", target=target)
    tables.write(cells, folder, reference=reference or "dlpo", target=target)
    typer.echo(visible_json(tables.to_json(rows)) if as_json else visible(tables.to_text(rows)))
    if not as_json:
        typer.echo(f"All columns: {visible(str(folder / 'table.md'))}")
    if not any(row.num_seeds for row in rows):
        raise RuntimeError("No cell has a result: all were skipped or failed, for the reasons above.")


def _check_reference(reference: str | None, optimizers: Sequence[str]) -> None:
    if reference not in {None, *optimizers}:
        raise ValueError(f"`--reference` must be one of {', '.join(dict.fromkeys(optimizers))}, but got {reference!r}.")
