"""Text sources -> tokenised shards -> sequences in an order that one integer fixes -> batches."""
