"""The tasks on which optimisers are compared."""
