"""Scaling laws: from finished runs to a fitted law, its uncertainty and what it predicts. No torch,
Ray or DeepSpeed."""
