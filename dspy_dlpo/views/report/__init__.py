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
from dspy_dlpo.views.report.charts import schedules, score_chart, spending_charts
from dspy_dlpo.views.report.view import prompts, step_views, visits


def save_report(result: RunResult, path: str | Path) -> Path:
    """Write a run as one HTML page.

    Args:
        result: The run.
        path: The file; what is there is overwritten, folders are made.

    Returns:
        The file.
    """
    path = Path(path)
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
        schedules=schedules(steps),
        spending=spending_charts(steps),
        style=style,
        script=script,
        hashes={"style": _hash(style), "script": _hash(script)},
    )


def _asset(name: str) -> Markup:
    return Markup(files(__name__).joinpath(name).read_text(encoding="utf-8"))


def _hash(text: str) -> str:
    """Return what a content security policy knows an inline style or script by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _seen(value: Any) -> Any:
    """Make text visible; HTML was made of text that is."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
