"""Training: the loop, what controls it, and what it records."""
