"""A run as one HTML page, for colleagues: it needs no network, no server and no account.

What came from a model or from data is text and stays text: Jinja2 escapes it, control characters are written out,
and the page's own policy lets nothing run or load but the style and the script it was written with.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dspy_dlpo.core.visible import visible
from dspy_dlpo.descent.outcome import RunResult
from dspy_dlpo.runtime.prices import dollars
from dspy_dlpo.views.report import words
from dspy_dlpo.views.report.charts import schedules, score_chart
from dspy_dlpo.views.report.view import prompts, step_views, val_examples, visits
from dspy_dlpo.views.words import duration, ending_of, models_of, resumed, spending, started, took


def save_report(result: RunResult, path: str | Path) -> Path:
    """Write a run as one HTML page.

    Args:
        result: The run.
        path: The file; what is there is overwritten, folders are made.

    Returns:
        The file.

    Raises:
        FileExistsError: If there is a link, which may lead to a file that was not meant.
    """
    path = Path(path)
    if path.is_symlink() and (path.is_file() or not path.exists()):  # `/dev/stdout` is none of these.
        raise FileExistsError(f"`path` must be no link, but {path} leads to {path.resolve()}. Give that file itself.")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(result), encoding="utf-8")
    return path


def render(result: RunResult) -> str:
    """Return the page as HTML."""
    environment = Environment(
        loader=PackageLoader("dspy_dlpo.views", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_seen,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= words.FILTERS | {"dollars": dollars}
    style, script = _asset("report.css"), _asset("report.js")
    steps = step_views(result)
    return environment.get_template("report.html.j2").render(
        result=result,
        run=result.run,
        headline=words.headline(result),
        steps=steps,
        prompts=prompts(result),
        visits=visits(result, steps),
        score_chart=score_chart(result, steps),
        schedules=schedules(result, steps),
        facts=facts(result),
        examples=val_examples(result),
        style=style,
        script=script,
        hashes={"style": _hash(style), "script": _hash(script)},
    )


def facts(result: RunResult) -> list[tuple[str, str]]:
    """Return what made the run, when, and how it ended."""
    accepted = sum(record.accepted for record in result.history)
    known = {
        "Models": models_of(result.run),
        "Began": started(result.run),
        "Took": took(result.run),
        "Resumed": resumed(result.run).removeprefix("resumed "),
        "Steps": f"{len(result.history)}, of which {accepted} accepted",
        "End": ending_of(result),
        "Cost": f"{spending(result.spent)}, {duration(result.spent.seconds)} in calls",
    }
    return [(name, said) for name, said in known.items() if said]


def _asset(name: str) -> Markup:
    return Markup(files(__name__).joinpath(name).read_text(encoding="utf-8"))


def _hash(text: str) -> str:
    """Return what a content security policy knows an inline style or script by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _seen(value: Any) -> Any:
    """Make text visible; HTML was made of text that is."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
