"""The run directory: its files, its lock, its events and where its time went."""
