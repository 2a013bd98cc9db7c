"""What a step takes: memory, time, traffic, money, failures."""
