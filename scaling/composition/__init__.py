"""Hydra's composition of conf/ and the command line into a checked RunConfig."""
