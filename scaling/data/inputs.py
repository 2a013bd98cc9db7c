"""Globs of files of several formats, and folders of sources -> pieces, in an order that depends on nothing else."""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from scaling.data.pieces import PIECE_BYTES, Piece, group_files, n_row_groups, size_of
from scaling.errors import ConfigError

COMPRESSED = (".gz", ".zst", ".zstd")
_JSON_LINES = (".jsonl", ".ndjson", ".json")  # C4's files of JSON lines end in .json.gz
_TEXT = (".txt", ".text", ".md", ".rst")
SOURCE_SUFFIXES = (
    ".bash", ".c", ".cc", ".cfg", ".clj", ".cmake", ".cpp", ".cs", ".css", ".cu", ".cuh", ".cxx", ".dart", ".el", ".erl",
    ".ex", ".f90", ".go", ".h", ".hpp", ".hs", ".html", ".ini", ".java", ".jl", ".js", ".jsx", ".kt", ".lisp", ".lua",
    ".m", ".md", ".ml", ".mli", ".nim", ".php", ".pl", ".pm", ".proto", ".py", ".pyi", ".pyx", ".r", ".rb", ".rs", ".rst",
    ".scala", ".sh", ".sql", ".swift", ".tcl", ".tex", ".toml", ".ts", ".tsx", ".txt", ".vim", ".yaml", ".yml", ".zig",
)  # fmt: skip
"""What is read in a folder, unless suffixes= says otherwise."""
_NOT_SOURCE = frozenset({"__pycache__", "node_modules"})


def find_pieces(
    inputs: Sequence[str], *, by_line: bool = False, suffixes: Sequence[str] = SOURCE_SUFFIXES, skip_bad: bool = False
) -> tuple[Piece, ...]:
    """What the inputs name, each file once. `by_line`: each line of a text is a document, not the file.

    Raises ConfigError for an input without files and for files of an unknown kind, DataError for unreadable ones.
    """
    paths = dict.fromkeys(Path(path) for pattern in inputs for path in _matches(pattern))
    folders = [path for path in paths if path.is_dir()]
    sources = dict.fromkeys(file for folder in folders for file in _sources(folder, suffixes))
    files = [path for path in paths if path.is_file() and path not in sources]
    whole = [path for path in files if _format(path) == "text" and not by_line]
    pieces = [piece for path in files if path not in set(whole) for piece in _pieces(path)]
    pieces = [dataclasses.replace(piece, lenient=skip_bad) for piece in [*group_files(whole), *pieces]]
    pieces += group_files(sources, lenient=True)  # a tree of sources has images and worse under any name
    if not pieces:
        raise ConfigError("there are no files", f"inputs={','.join(inputs)}", "Name files, or folders that hold sources.")
    return tuple(pieces)


def _matches(pattern: str) -> list[str]:
    """Absolute paths that match, in order. Raises ConfigError when there are none."""
    found = sorted(map(os.path.abspath, glob.glob(os.path.expanduser(pattern), recursive=True)))
    if "**" in pattern:  # the folders on the way are no inputs
        found = [path for path in found if not os.path.isdir(path)]
    if not found:
        raise ConfigError(
            f"inputs={pattern!r} matches nothing", f"seen from {Path.cwd()}", "Give a glob or a folder, as inputs='books/*.txt'."
        )
    return found


def _format(path: Path) -> str:
    """text, jsonl, parquet or tar. Raises ConfigError."""
    plain = path.with_suffix("") if path.suffix in COMPRESSED else path
    suffix = plain.suffix.lower()
    if suffix in _JSON_LINES:
        return "jsonl"
    if path.suffix == ".parquet":
        return "parquet"
    if suffix in (".tar", ".tgz"):
        return "tar"
    if suffix in _TEXT or suffix in SOURCE_SUFFIXES:
        return "text"
    raise ConfigError(
        f"{path} is of no known kind",
        fix="Read are .txt (and .md, .rst, sources), .jsonl, .parquet and .tar; .gz and .zst of them but parquet; folders.",
    )


def _pieces(path: Path) -> Iterator[Piece]:
    """A file in ranges, where its format can be entered in the middle."""
    kind = _format(path)
    if kind == "tar":
        yield Piece("tar", (path,))
    elif kind == "parquet":
        n_groups, size = n_row_groups(path), size_of(path)
        n_together = max(1, n_groups * PIECE_BYTES // max(size, 1))
        for begin in range(0, n_groups, n_together):
            yield Piece("parquet", (path,), begin, min(begin + n_together, n_groups))
    elif path.suffix in COMPRESSED:
        yield Piece("jsonl" if kind == "jsonl" else "lines", (path,))
    else:
        for begin in range(0, size_of(path), PIECE_BYTES):
            yield Piece("jsonl" if kind == "jsonl" else "lines", (path,), begin, begin + PIECE_BYTES)


def _sources(folder: Path, suffixes: Sequence[str]) -> Iterator[Path]:
    """Files of some suffixes under a folder, in order; hidden folders and links are left out."""
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _NOT_SOURCE and not name.startswith("."))
        for name in sorted(names):
            path = Path(root, name)
            if path.suffix.lower() in suffixes and path.is_file() and not path.is_symlink():
                yield path
