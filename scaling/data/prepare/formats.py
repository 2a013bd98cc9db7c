"""What the ending of a name states: the format of a file, and whether a folder's file is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from scaling.data.io.open_input import is_compressed
from scaling.data.io.remote import name_of
from scaling.errors import ConfigError

_JSON_LINES = (".jsonl", ".ndjson", ".json")  # C4's files of JSON lines end in .json.gz
RECORDS = (
    *(lines + packed for lines in _JSON_LINES for packed in ("", ".gz", ".zst", ".zstd")),
    ".parquet",
)
_TEXT = (".txt", ".text", ".md", ".rst")
SOURCE_SUFFIXES = (
    ".bash",
    ".c",
    ".cc",
    ".cfg",
    ".clj",
    ".cmake",
    ".cpp",
    ".cs",
    ".css",
    ".cu",
    ".cuh",
    ".cxx",
    ".dart",
    ".el",
    ".erl",
    ".ex",
    ".f90",
    ".go",
    ".h",
    ".hpp",
    ".hs",
    ".html",
    ".ini",
    ".java",
    ".jl",
    ".js",
    ".jsx",
    ".kt",
    ".lisp",
    ".lua",
    ".m",
    ".md",
    ".ml",
    ".mli",
    ".nim",
    ".php",
    ".pl",
    ".pm",
    ".proto",
    ".py",
    ".pyi",
    ".pyx",
    ".r",
    ".rb",
    ".rs",
    ".rst",
    ".scala",
    ".sh",
    ".sql",
    ".swift",
    ".tcl",
    ".tex",
    ".toml",
    ".ts",
    ".tsx",
    ".txt",
    ".vim",
    ".yaml",
    ".yml",
    ".zig",
)
"""What is read in a folder, unless suffixes= says otherwise."""


Kind = Literal["text", "jsonl", "parquet", "tar"]


def kind_of(location: str) -> Kind | None:
    """The format that the end of the name states, in either case; None for an unknown one."""
    name = name_of(location)
    suffix = (name.with_suffix("") if is_compressed(location) else name).suffix.lower()
    if suffix in _JSON_LINES:
        return "jsonl"
    if suffix == ".parquet" and not is_compressed(location):
        return "parquet"
    if suffix in (".tar", ".tgz"):
        return "tar"
    return "text" if suffix in _TEXT or suffix in SOURCE_SUFFIXES else None


def format_of(location: str) -> Kind:
    """The format of `kind_of`. Raises ConfigError for an unknown one."""
    if (kind := kind_of(location)) is not None:
        return kind
    raise ConfigError(
        f"{location} is of no known kind",
        fix="Read are .txt (and .md, .rst, sources), .jsonl, .parquet and .tar; .gz and .zst of "
        "them but parquet; folders.",
    )


def endings_of(suffixes: Sequence[str]) -> tuple[str, ...]:
    """Endings as names have them, from py, .PY or *.py."""
    return tuple(f".{suffix.strip().lstrip('*.')}".lower() for suffix in suffixes)


def ending_of(path: Path) -> str:
    inner = path.with_suffix("").suffix if is_compressed(str(path)) else ""
    return (inner + path.suffix).lower() or "no ending"
