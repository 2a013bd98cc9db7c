"""Trained runs opened for use: prompts, sampling, beam search, gaps, text."""
