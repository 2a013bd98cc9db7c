"""Shards -> sequences in the order that one integer fixes -> batches."""
