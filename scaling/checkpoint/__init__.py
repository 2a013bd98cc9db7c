"""Checkpoints: fragments by parameter name, a manifest, one atomic commit."""
