"""A language model on this machine, and a first run on it."""

from dspy_dlpo.local.engine import local_lm

__all__ = ["local_lm"]
