"""Globs, URLs and names of data sets, and folders of sources -> pieces, in an order that depends on nothing else."""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from scaling.data.open_input import COMPRESSED, n_row_groups, size_of
from scaling.data.pieces import PIECE_BYTES, Format, Piece, group_files
from scaling.data.remote import N_THREADS, InputFile, find_remote, is_remote, name_of
from scaling.errors import ConfigError

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
    inputs: Sequence[str],
    *,
    by_line: bool = False,
    suffixes: Sequence[str] = SOURCE_SUFFIXES,
    skip_bad: bool = False,
    max_files: int | None = None,
    commits: dict[str, str] | None = None,
) -> tuple[Piece, ...]:
    """What the inputs name, each file once, of each remote input the first `max_files`.

    `by_line`: each line of a text is a document, not the file. `commits`: of data sets of the hub, extended by those found.
    Raises ConfigError for an input without files and for files of an unknown kind, DataError for unreadable ones.
    """
    commits = {} if commits is None else commits
    local, sources = _local_pieces([text for text in inputs if not is_remote(text)], by_line, suffixes)
    remote = dict.fromkeys(file for text in inputs if is_remote(text) for file in find_remote(text, commits)[:max_files])
    with ThreadPoolExecutor(N_THREADS) as pool:  # the ends of parquet files are waited for
        found = pool.map(lambda file: list(_pieces(file, by_line)), remote)
        pieces = [*local, *(piece for of_file in found for piece in of_file)]
    pieces = [dataclasses.replace(piece, lenient=skip_bad) for piece in pieces] + sources
    if not pieces:
        raise ConfigError("there are no files", f"inputs={','.join(inputs)}", "Name files, or folders that hold sources.")
    return tuple(pieces)


def local_files(patterns: Sequence[str], suffixes: Sequence[str] = SOURCE_SUFFIXES) -> dict[Path, bool]:
    """The files that globs and folders name, each once, and whether it was found in a folder. Raises ConfigError."""
    paths = dict.fromkeys(Path(path) for pattern in patterns for path in _matches(pattern))
    folders = [path for path in paths if path.is_dir()]
    sources = dict.fromkeys(file for folder in folders for file in _sources(folder, suffixes))
    return {path: False for path in paths if path.is_file() and path not in sources} | dict.fromkeys(sources, True)


def _local_pieces(patterns: Sequence[str], by_line: bool, suffixes: Sequence[str]) -> tuple[list[Piece], list[Piece]]:
    """Pieces of the files that are named, and of sources in folders, which are lenient: such trees hold images and worse."""
    found = local_files(patterns, suffixes)
    files = [path for path, in_folder in found.items() if not in_folder]
    whole = dict.fromkeys(path for path in files if _format(str(path)) == "text" and not by_line)
    ranges = (InputFile(str(path), size_of(path), ranges=True) for path in files if path not in whole)
    pieces = [*group_files(whole), *(piece for file in ranges for piece in _pieces(file, by_line))]
    return pieces, list(group_files((path for path, in_folder in found.items() if in_folder), lenient=True))


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


def _format(location: str) -> str:
    """text, jsonl, parquet or tar. Raises ConfigError."""
    name = name_of(location)
    plain = name.with_suffix("") if name.suffix in COMPRESSED else name
    suffix = plain.suffix.lower()
    if suffix in _JSON_LINES:
        return "jsonl"
    if name.suffix == ".parquet":
        return "parquet"
    if suffix in (".tar", ".tgz"):
        return "tar"
    if suffix in _TEXT or suffix in SOURCE_SUFFIXES:
        return "text"
    raise ConfigError(
        f"{location} is of no known kind",
        fix="Read are .txt (and .md, .rst, sources), .jsonl, .parquet and .tar; .gz and .zst of them but parquet; folders.",
    )


def _pieces(file: InputFile, by_line: bool) -> Iterator[Piece]:
    """A file in ranges, where its format can be entered in the middle, and its server lets us."""
    kind, location = _format(file.location), file.location
    if kind == "text" and not by_line:
        yield Piece("files", (location,), version=file.version)
    elif kind == "tar":
        yield Piece("tar", (location,), version=file.version)
    elif kind == "parquet":
        n_groups = n_row_groups(location)
        n_together = max(1, n_groups * PIECE_BYTES // max(file.size or 0, 1))
        for begin in range(0, n_groups, n_together):
            yield Piece("parquet", (location,), begin, min(begin + n_together, n_groups), version=file.version)
    else:
        lines: Format = "jsonl" if kind == "jsonl" else "lines"
        if name_of(location).suffix in COMPRESSED or not file.ranges or file.size is None:
            yield Piece(lines, (location,), version=file.version)
        else:
            for begin in range(0, file.size, PIECE_BYTES):
                yield Piece(lines, (location,), begin, begin + PIECE_BYTES, version=file.version)


def _sources(folder: Path, suffixes: Sequence[str]) -> Iterator[Path]:
    """Files of some suffixes under a folder, in order; hidden folders and links are left out."""
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _NOT_SOURCE and not name.startswith("."))
        for name in sorted(names):
            path = Path(root, name)
            if path.suffix.lower() in suffixes and path.is_file() and not path.is_symlink():
                yield path
