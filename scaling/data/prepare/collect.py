"""The tasks that bring documents into order: pieces to sorted runs, runs to fewer, runs to buckets.

A process of the pool imports them by name. Each writes its files and returns counts as plain JSON.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scaling.data.prepare.ordering import document_of, merge_runs, write_bucket, write_runs
from scaling.data.prepare.pieces import Piece, Reading, read_piece
from scaling.data.prepare.sources import UnfitInput, UnfitText


def merge_group(directory: Path, name: str, runs: list[str]) -> dict[str, Any]:
    """Task: one run of the documents of several."""
    return {"run": merge_runs(directory, runs, name)}


def sort_piece(directory: Path, name: str, piece: Piece, reading: Reading) -> dict[str, Any]:
    """Task: the documents of a piece, in sorted runs."""
    counts: dict[str, Any] = {
        "n_documents": 0,
        "n_bytes": 0,
        "n_empty": 0,
        "empty": [],
        "n_unfit": 0,
        "unfit": None,
    }

    def fit() -> Iterator[Any]:
        for number, text in enumerate(read_piece(piece, reading)):
            if isinstance(text, UnfitText):
                if not piece.lenient:
                    raise UnfitInput(text.what, text.where, text.fix)
                counts["n_unfit"] += 1
                counts["unfit"] = counts["unfit"] or text.what
            elif not text:
                counts["n_empty"] += 1
                if piece.format == "files":
                    counts["empty"].append(piece.locations[number])
            else:
                document = document_of(text, piece.held_out)
                counts["n_documents"] += 1
                counts["n_bytes"] += len(document.content)
                yield document

    return {"runs": write_runs(fit(), directory, name), **counts}


def merge_bucket(
    directory: Path, name: str, runs: list[str], bounds: tuple[int, int], low: int
) -> dict[str, Any]:
    """Task: the distinct documents of one range of hashes, in order."""
    return asdict(write_bucket(directory, runs, name, bounds, low))
