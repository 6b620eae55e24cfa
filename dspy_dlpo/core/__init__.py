"""Plain data and operations on text: no language model, no disk."""
