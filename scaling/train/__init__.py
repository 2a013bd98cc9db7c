"""Training: the loop, its state, the optimiser and schedules."""
