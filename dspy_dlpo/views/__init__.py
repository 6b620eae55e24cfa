"""What people see of a run: result, progress, explanation, plots, trackers, report."""
