"""What a worker and its driver report to each other: typed messages, errors as data."""
