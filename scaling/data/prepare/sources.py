"""Where documents come from: the files of a source, their identity, and their text. Standard
library only."""

from __future__ import annotations

import codecs
import hashlib
import os
import sysconfig
import zlib
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from scaling.config.paths import closed_folders, matching, oddity, plain
from scaling.config.run_config import DataConfig
from scaling.data.io.fetch import unreadable
from scaling.data.io.open_input import is_compressed, open_bytes
from scaling.errors import ConfigError, DataError

_NOT_LIBRARY = frozenset({"site-packages", "dist-packages", "__pycache__"})
BETWEEN = "\x1e"
"""Separates source and target where a pair is one string: the record separator of ASCII, which
text does not hold."""
_TESTS = frozenset({"test", "tests", "idle_test"})


TEXT_SUFFIXES = (".txt", ".text", ".md", ".rst")
PAIR_SUFFIXES = (".tsv", ".txt")


@dataclass(frozen=True)
class Source:
    """Files, sorted, and what a document is in them.

    Each file is one, or each line (`pairs`): source TAB target, or with a `target_file` the line of
    the same number of each. `strict`: a file that is not UTF-8 is an error; otherwise it is left
    out. `val_files` are held out, whatever their hash.
    """

    files: tuple[Path, ...]
    strict: bool
    pairs: bool = False
    target_file: Path | None = None
    val_files: tuple[Path, ...] = ()
    val_target_file: Path | None = None

    def identity(self) -> str:
        files = (*self.files, self.target_file, *self.val_files, self.val_target_file)
        return files_identity(path for path in files if path is not None)


def files_identity(paths: Iterable[Path]) -> str:
    """SHA-256 over path, size and time of change of every file: another one whenever the text may
    have changed.

    Raises DataError for one that is not there.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            raise unreadable(path, error) from error
        digest.update(
            f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="surrogateescape")
        )
    return digest.hexdigest()


def find_source(data: DataConfig) -> Source:
    """The files that data.kind and data.path name. Raises ConfigError when there are none."""
    suffixes = PAIR_SUFFIXES if data.kind == "text_pairs" else TEXT_SUFFIXES
    val_files = _matches("data.val_path", data.val_path, suffixes) if data.val_path else ()
    if data.kind == "python_stdlib":
        files = tuple(python_files(Path(sysconfig.get_path("stdlib")), _NOT_LIBRARY | _TESTS))
        return Source(files, strict=False, val_files=val_files)
    if data.kind == "python_packages":
        roots = sorted({Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")})
        files = tuple(path for root in roots for path in python_files(root, {"__pycache__"}))
        return Source(files, strict=False, val_files=val_files)
    assert data.kind in ("text_files", "text_pairs")
    assert data.path is not None
    files = _matches("data.path", data.path, suffixes)
    return Source(
        files,
        strict=True,
        pairs=data.kind == "text_pairs",
        target_file=_target("data.target_path", data.target_path, "data.path", data.path, files),
        val_files=val_files,
        val_target_file=_target(
            "data.val_target_path", data.val_target_path, "data.val_path", data.val_path, val_files
        ),
    )


def _target(
    key: str, name: str | None, of: str, path: str | None, files: Sequence[Path]
) -> Path | None:
    """The file of the targets of one file. Raises ConfigError for several, or where it is not
    there."""
    if not name:
        return None
    if len(files) > 1:
        raise ConfigError(
            f"{of}={path!r} is {len(files)} files, and {key} one", fix="Give one of each."
        )
    found = Path(plain(name)).absolute()
    if not found.is_file():
        raise ConfigError(
            f"{key}={name!r} is no file",
            f"seen from {Path.cwd()}",
            f"Give the targets of {of}, line by line.",
        )
    return found


def _matches(key: str, pattern: str, suffixes: Sequence[str]) -> tuple[Path, ...]:
    """The files of a path or glob, sorted; of a folder those with one of `suffixes`.

    Raises ConfigError when there are none, DataError for what is no file.
    """
    if closed := closed_folders(pattern):
        raise DataError(
            f"{closed[0]} cannot be listed, and {key} looks into it",
            f"{key}={pattern}",
            "Make it readable, or give a pattern that leaves it out.",
        )
    found = [Path(path) for path in matching(pattern)]
    for path in found:
        check_readable(path, f"{key}={pattern}")
    files = sorted(path for path in found if path.is_file())
    if not files:
        files = [path for folder in found for path in _in_folder(folder, suffixes)]
        for path in files:
            check_readable(path, f"{key}={pattern}")
    if not files:
        raise ConfigError(
            f"{key}={pattern!r} matches no file",
            where=f"seen from {Path.cwd()}",
            fix=f"Give a file, a glob or a folder of UTF-8 text files ({', '.join(suffixes)}), "
            f"such as {key}='books/**/*.txt'.",
        )
    return tuple(files)


def check_readable(path: Path, where: str | None = None) -> None:
    """Raise DataError for a path that is neither a file nor a folder, such as a link to nothing."""
    if (odd := oddity(path)) is not None:
        raise DataError(
            f"{path} {odd}, and no file to read",
            where,
            "Restore it, or leave it out of the inputs.",
        )


def walk(folder: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """os.walk, sorted; links are followed, to each folder once. Raises DataError for a folder
    that cannot be read."""
    seen: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True, onerror=_refuse):
        if (real := os.path.realpath(root)) in seen:  # a link in a circle, or two to one folder
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield Path(root), folders, sorted(names)


def _refuse(error: OSError) -> None:
    raise unreadable(error.filename, error)


def _in_folder(folder: Path, suffixes: Sequence[str]) -> Iterator[Path]:
    """Files of some suffixes under a folder, compressed or not, in order, but for hidden
    folders."""
    for root, folders, names in walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (root / name for name in names if _inner_name(name).endswith(tuple(suffixes)))


def _inner_name(name: str) -> str:
    """The name in lower case, without the ending of a compressed file."""
    return (name.rpartition(".")[0] if is_compressed(name) else name).lower()


def python_files(root: Path, left_out: Set[str]) -> Iterator[Path]:
    """Python sources under a folder, but for those in folders of some names, in sorted order."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - left_out)
        paths = (Path(folder, name) for name in sorted(names) if name.endswith(".py"))
        # distributions link some, not always to a file
        yield from (path for path in paths if path.is_file())


class UnfitInput(DataError):
    """An input that the options given can make nothing of: the same command would end the same
    way."""


class UnfitText(UnfitInput):
    """A document that no corpus can hold: not UTF-8, not what its format says, or too long."""


_OTHER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
"""Byte order marks; the longer ones first, since one begins like another."""


def without_mark(content: bytes) -> bytes:
    """The beginning of a file, without the byte order mark that some programs write before
    UTF-8."""
    return content.removeprefix(codecs.BOM_UTF8)


def decoded(content: bytes, place: str) -> str:
    """Text of UTF-8, byte for byte (line ends too). Raises UnfitText that says where it is not."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = content[error.start]
        other = next(
            (name for mark, name in _OTHER_MARKS.items() if content.startswith(mark)), None
        )
        raise UnfitText(
            f"{place} is not UTF-8 text: byte {byte:#04x} at {error.start}"
            + (f", the mark of {other}" if other else ""),
            fix=f"Convert the file, as with iconv -f {other} -t UTF-8."
            if other
            else "Convert the file, or leave it out.",
        ) from error


def read_pairs(source: Source) -> Iterator[tuple[Path, str]]:
    """Every pair as source, BETWEEN, target, with its file; pairs of two empty sides are passed
    over.

    Raises DataError for a line with another number of TABs than one, for parallel files of unequal
    length, and for a side that holds BETWEEN itself.
    """
    for path in source.files:
        pairs = (
            _columns(path) if source.target_file is None else _parallel(path, source.target_file)
        )
        for number, (one, other) in enumerate(pairs, start=1):
            if BETWEEN in one + other:
                raise UnfitInput(
                    f"pair {number} of {path} holds the control character {BETWEEN!r}",
                    fix="Remove it.",
                )
            if one.strip() or other.strip():
                yield path, one + BETWEEN + other


def _columns(path: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(_lines(path), start=1):
        sides = line.split("\t")
        if line.strip() and len(sides) != 2:
            raise UnfitInput(
                f"line {number} of {path} has {len(sides) - 1} TABs",
                fix="Every line is: source, one TAB, target.",
            )
        yield sides[0], sides[-1]


def _parallel(path: Path, target_path: Path) -> Iterator[tuple[str, str]]:
    lines, targets = _lines(path), _lines(target_path)
    if len(lines) != len(targets):
        raise UnfitInput(
            f"{path} has {len(lines)} lines, and {target_path} has {len(targets)}",
            fix="Line n of one is the translation of line n of the other: give files of equal "
            "length.",
        )
    yield from zip(lines, targets, strict=True)


def _lines(path: Path) -> list[str]:
    try:
        with open_bytes(str(path)) as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(path, error) from error
    text = decoded(without_mark(content), str(path))
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
