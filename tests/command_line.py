"""Calls the command `dspy-dlpo` as a user would."""

from __future__ import annotations

from typing import Any

from typer.testing import CliRunner, Result

from dspy_dlpo.benchmarks.command import app


def call(*arguments: Any) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(each) for each in arguments])
