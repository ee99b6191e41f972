"""What repeats a run: sweeps, experiments and their reports."""
