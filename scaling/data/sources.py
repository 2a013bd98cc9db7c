"""Where documents come from: the files of a source, their identity, and their text. Standard library only."""

from __future__ import annotations

import glob
import hashlib
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scaling.config import DataConfig
from scaling.errors import ConfigError, DataError

_NOT_LIBRARY = frozenset({"site-packages", "dist-packages", "__pycache__"})
_TESTS = frozenset({"test", "tests", "idle_test"})


@dataclass(frozen=True)
class Source:
    """Files of one document each, sorted. `strict`: one that is not UTF-8 is an error; otherwise it is left out."""

    files: tuple[Path, ...]
    strict: bool

    def identity(self) -> str:
        """SHA-256 over path, size and time of change of every file: another one whenever the text may have changed."""
        digest = hashlib.sha256()
        for path in self.files:
            try:
                status = path.stat()
            except OSError as error:
                raise _unreadable(path, error) from error
            digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()


def find_source(data: DataConfig) -> Source:
    """The files that data.kind and data.path name. Raises ConfigError when there are none."""
    if data.kind == "python_stdlib":
        return Source(tuple(_stdlib_files(Path(sysconfig.get_path("stdlib")))), strict=False)
    assert data.kind == "text_files"
    assert data.path is not None
    matches = glob.glob(os.path.expanduser(data.path), recursive=True)
    files = sorted(path for path in map(Path, map(os.path.abspath, matches)) if path.is_file())
    if not files:
        raise ConfigError(
            f"data.path={data.path!r} matches no file",
            where=f"seen from {Path.cwd()}",
            fix="Give a glob of UTF-8 text files, such as data.path='books/**/*.txt'.",
        )
    return Source(tuple(files), strict=True)


def _stdlib_files(root: Path) -> Iterator[Path]:
    """Python sources of the standard library, without its tests and what is installed beside it, in sorted order."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - _NOT_LIBRARY - _TESTS)
        paths = (Path(folder, name) for name in sorted(names) if name.endswith(".py"))
        yield from (path for path in paths if path.is_file())  # distributions link some, not always to a file


def read_document(path: Path, strict: bool) -> str | None:
    """Text of a UTF-8 file, byte for byte (line ends too). One that is not UTF-8: DataError if strict, else None."""
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise _unreadable(path, error) from error
    except UnicodeDecodeError as error:
        if not strict:
            return None
        byte = error.object[error.start]
        raise DataError(
            f"{path} is not UTF-8 text: byte {byte:#04x} at {error.start}", fix="Convert the file, or leave it out of data.path."
        ) from error


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path} cannot be read: {error.strerror or error}", fix="Make it readable, or leave it out of data.path.")
