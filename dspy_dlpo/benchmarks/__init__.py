"""Measurements behind the README's tables, each a command that prints its figures."""
