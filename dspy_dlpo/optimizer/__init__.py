"""`DLPOOptimizer`, and what can be asked of it before a run."""
