"""Scaling laws: fits to finished runs, their uncertainty, and predictions. Imports neither torch
nor Ray nor DeepSpeed."""
