"""Tune a one-step program on a language model that runs on this machine: no account, no server, no compiler.

The task comes with the package: orders in free text, to be written in a notation that no model can guess, and a
reviewer who marks each line from 0 to 1 and notes what is wrong. `dspy-dlpo quickstart` is the same with options; the
optimiser and its settings are in `tune` of `dspy_dlpo/local/quickstart.py`.

    python examples/01_quickstart.py
"""

from dspy_dlpo.local.quickstart import quickstart

if __name__ == "__main__":
    quickstart(log_dir="runs/quickstart")
