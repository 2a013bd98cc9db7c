"""Train Transformers of increasing size, and learn what the next size will buy."""

__version__ = "0.1.0"
