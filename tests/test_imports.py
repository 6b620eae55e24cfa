from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import dspy_dlpo

SLOW_OR_EXTRA = ("datasets", "matplotlib", "mlflow", "pandas", "rich.live", "wandb")


def test_import_of_the_package_imports_no_extra_and_no_live_view() -> None:
    code = f"import sys, dspy_dlpo; print(*[name for name in {SLOW_OR_EXTRA} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_package_tells_its_version_and_has_every_public_name() -> None:
    assert dspy_dlpo.__version__ == version("dspy-dlpo")
    assert [name for name in dspy_dlpo.__all__ if not hasattr(dspy_dlpo, name)] == []
    assert issubclass(dspy_dlpo.MetricError, ValueError)
