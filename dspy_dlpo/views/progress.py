"""How a run is shown while it goes on: on a terminal, in a notebook, in a log."""

from __future__ import annotations

import logging
import os
import sys

from dspy_dlpo.descent.listeners import Listener
from dspy_dlpo.views.lines import Lines

_logger = logging.getLogger("dspy_dlpo")


def progress(verbose: bool) -> list[Listener]:
    """Return what shows a run.

    Each step is logged, as INFO of the logger `dspy_dlpo`. If `verbose`, there is more on standard error: the live view
    on a terminal; elsewhere, as in a notebook, the same lines, unless they are already seen since logging shows them.
    """
    views: list[Listener] = [Lines(_logger.info)]
    if verbose and _is_free_terminal():
        from dspy_dlpo.views.live import LiveView  # Without a terminal nobody pays for the import of rich.

        views.append(LiveView())
    elif verbose and not (_logger.isEnabledFor(logging.INFO) and _logger.hasHandlers()):
        views.append(Lines())
    return views


def _is_free_terminal() -> bool:
    """Whether standard error is a terminal that can be drawn on, without a live view of rich's or of ours."""
    if sys.stderr is None or hasattr(sys.stderr, "rich_proxied_file"):
        return False
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
