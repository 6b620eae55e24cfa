"""The optimisers that are compared."""
