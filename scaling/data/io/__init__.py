"""Bytes of files in directories and behind URLs."""
