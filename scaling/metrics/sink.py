"""The protocol of a view of metrics.jsonl; each sink has a file of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Sink(Protocol):
    """A view of metrics.jsonl."""

    def log(self, record: Mapping[str, float]) -> None:
        """Take one record as it was written."""
        ...

    def rewind(self, step: int) -> None:
        """Discard the records after `step`: others of these steps will follow."""
        ...

    def close(self) -> None:
        """Keep every record that was logged."""
        ...
