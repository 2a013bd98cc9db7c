"""Transformers: families, each a page, on shared blocks."""
