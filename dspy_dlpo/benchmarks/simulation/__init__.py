"""A simulated task and language model."""
