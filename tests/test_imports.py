from __future__ import annotations

import subprocess
import sys

SLOW_OR_EXTRA = ("datasets", "matplotlib", "mlflow", "pandas", "rich.live", "wandb")


def test_import_of_the_package_imports_no_extra_and_no_live_view() -> None:
    code = f"import sys, dspy_dlpo; print(*[name for name in {SLOW_OR_EXTRA} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
