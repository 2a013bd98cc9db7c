"""What a run measures: metric names, the record in metrics.jsonl, throughput, and the views of the
record."""
