"""How a run is shown while it goes on: on a terminal, in a notebook, in a log file."""

from __future__ import annotations

import os
import sys

from dspy_dlpo.descent.listeners import Listener
from dspy_dlpo.views.lines import Lines


def progress() -> Listener:
    """Return what suits standard error: the live view on a terminal, plain lines elsewhere, as in a notebook."""
    terminal = sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    if not terminal or hasattr(sys.stderr, "rich_proxied_file"):  # A view is on already, of rich's or of ours.
        return Lines()
    from dspy_dlpo.views.live import LiveView  # Without a terminal nobody pays for the import of rich.

    return LiveView()
