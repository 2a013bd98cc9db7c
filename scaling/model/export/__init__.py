"""Weights under the names of other libraries, and back."""
