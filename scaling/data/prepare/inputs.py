"""Globs, URLs and names of data sets, and folders of sources -> pieces, in an order that depends on
nothing else."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from scaling.config.paths import closed_folders, hidden_matching, matching, oddity
from scaling.data.io.open_input import is_compressed, n_row_groups, size_of
from scaling.data.io.remote import N_THREADS, InputFile, find_remote, is_remote
from scaling.data.prepare.formats import (
    RECORDS,
    SOURCE_SUFFIXES,
    Kind,
    ending_of,
    endings_of,
    format_of,
    kind_of,
)
from scaling.data.prepare.left_out import (
    BEYOND,
    CLOSED,
    EMPTY,
    FOLDERS,
    HIDDEN,
    ODD,
    OTHER_KINDS,
    LeftOut,
)
from scaling.data.prepare.pieces import PIECE_BYTES, Format, Piece, group_files
from scaling.data.prepare.sources import check_readable, walk
from scaling.data.prepare.tasks import Report, silent
from scaling.errors import ConfigError, DataError

_NOT_SOURCE = frozenset({"__pycache__", "node_modules"})


def find_pieces(
    inputs: Sequence[str],
    *,
    by_line: bool = False,
    suffixes: Sequence[str] = SOURCE_SUFFIXES,
    skip_bad: bool = False,
    max_files: int | None = None,
    commits: dict[str, str] | None = None,
    report: Report = silent,
) -> tuple[Piece, ...]:
    """What the inputs name, each file once, of each input the first `max_files`.

    `by_line`: each line of a text is a document, not the file. `commits`: of data sets of the hub,
    extended by those found. `report` receives what is left out. Raises ConfigError for an input
    without files and for files of an unknown kind, DataError for unreadable ones.
    """
    commits, left_out = {} if commits is None else commits, LeftOut()
    files = local_files(
        [text for text in inputs if not is_remote(text)], suffixes, left_out, max_files
    )
    local, sources = _local_pieces(files, by_line, left_out)
    remote = _remote_files(
        [text for text in inputs if is_remote(text)], commits, max_files, left_out
    )
    with ThreadPoolExecutor(N_THREADS) as pool:  # the ends of parquet files are waited for
        found = pool.map(
            lambda file: _pieces_or_none(file, format_of(file.location), by_line, left_out), remote
        )
        pieces = [*local, *(piece for of_file in found for piece in of_file)]
    pieces = [dataclasses.replace(piece, lenient=skip_bad) for piece in pieces] + sources
    if not pieces:
        raise _nothing(inputs, left_out)
    for line in left_out.lines():
        report(line, None)
    return tuple(pieces)


@contextlib.contextmanager
def named_by(key: str) -> Iterator[None]:
    """Errors of `find_pieces` and `local_files` name a key of a run instead of the option inputs=
    of scaling.prepare. A run has no suffixes=."""
    try:
        yield
    except ConfigError as error:
        what, where, fix = (
            part and part.replace("inputs=", f"{key}=").replace(_BY_ENDINGS, "")
            for part in (error.what, error.where, error.fix)
        )
        raise ConfigError(what or "", where, fix) from error


_BY_ENDINGS = " their endings, as suffixes=.jsonl, or by"


def _nothing(inputs: Sequence[str], left_out: LeftOut) -> ConfigError:
    fix = "Name files, or folders that hold sources."
    if OTHER_KINDS in left_out:
        fix = f"Of folders, sources and texts are read: name others by{_BY_ENDINGS} a glob."
    return ConfigError(
        "; ".join(["there is nothing to read", *left_out.lines()]),
        f"inputs={','.join(inputs)}",
        fix,
    )


def _remote_files(
    inputs: Sequence[str], commits: dict[str, str], max_files: int | None, left_out: LeftOut
) -> list[InputFile]:
    """The files of URLs and data sets, each once."""
    found: dict[InputFile, None] = {}
    beyond: list[InputFile] = []
    for text in inputs:
        files = find_remote(text, commits)
        found |= dict.fromkeys(files[:max_files])
        beyond += files[max_files:] if max_files is not None else []
    for file in beyond:
        if file not in found:
            left_out.add(BEYOND, file.location)
    return list(found)


def local_files(
    patterns: Sequence[str],
    suffixes: Sequence[str] = SOURCE_SUFFIXES,
    left_out: LeftOut | None = None,
    max_files: int | None = None,
) -> dict[Path, bool]:
    """The files that paths, globs and folders name, each once, of each the first `max_files`, and
    whether it was found in a folder.

    Raises ConfigError for a pattern without matches, DataError for what is named and no file, as a
    link to nothing.
    """
    named: dict[Path, None] = {}
    sources: dict[Path, None] = {}
    beyond: list[Path] = []
    note = LeftOut() if left_out is None else left_out  # a check reports nothing
    for pattern in patterns:
        files = _files_of(pattern, suffixes, note)
        beyond += list(files)[max_files:] if max_files is not None else []
        for path in list(files)[:max_files]:
            (sources if files[path] else named)[path] = None
    if left_out is not None:
        _note_hidden(patterns, named, left_out)
        for path in beyond:
            # another input may name it among its first ones
            if path not in named and path not in sources:
                left_out.add(BEYOND, str(path))
    return {path: False for path in named if path not in sources} | dict.fromkeys(sources, True)


def _files_of(pattern: str, suffixes: Sequence[str], left_out: LeftOut) -> dict[Path, bool]:
    """The files that one pattern names, as `local_files` gives them."""
    paths = [Path(path) for path in _matches(pattern)]
    for closed in closed_folders(pattern):
        left_out.add(CLOSED, closed)
    for path in paths:
        check_readable(path)
    named = {path: False for path in paths if path.is_file()}
    for folder in paths:
        if folder.is_dir():
            found = _sources(folder, _endings_for(folder, suffixes), left_out)
            named |= dict.fromkeys(found, True)
    return named


def _note_hidden(patterns: Sequence[str], named: Container[Path], left_out: LeftOut) -> None:
    """Note what patterns pass over because its name, or that of a folder above it, begins with a
    dot."""
    for path in dict.fromkeys(
        Path(match) for pattern in patterns for match in hidden_matching(pattern)
    ):
        if path in named or (path.is_dir() and not path.name.startswith(".")):
            continue
        if path.is_dir():
            left_out.add(FOLDERS, path.name)
        elif path.name.startswith("."):
            left_out.add(HIDDEN, str(path))


def _local_pieces(
    files: Mapping[Path, bool], by_line: bool, left_out: LeftOut
) -> tuple[list[Piece], list[Piece]]:
    """Pieces of the files that are named, and of texts in folders, which are lenient: such trees
    hold images and worse.

    JSON lines, tables and archives in folders are read as those that are named.
    """
    texts: dict[bool, list[Path]] = {False: [], True: []}
    pieces: dict[bool, list[Piece]] = {False: [], True: []}
    for path, in_folder in files.items():
        # an ending that is not known here was asked for with suffixes=
        kind = (kind_of(str(path)) or "text") if in_folder else format_of(str(path))
        size, lenient = size_of(path), in_folder and kind == "text"
        if kind != "text" or by_line:
            file = InputFile(str(path), size, ranges=True)
            pieces[lenient] += _pieces_or_none(file, kind, by_line, left_out)
        elif size:
            texts[lenient].append(path)
        else:
            left_out.add(EMPTY, str(path))
    lenient_pieces = (dataclasses.replace(piece, lenient=True) for piece in pieces[True])
    return (
        [*group_files(texts[False]), *pieces[False]],
        [*group_files(texts[True], lenient=True), *lenient_pieces],
    )


def _matches(pattern: str) -> list[str]:
    """Absolute paths that match, in order. Raises ConfigError when there are none."""
    found = matching(pattern)
    if not found and (closed := closed_folders(pattern)):
        raise DataError(
            f"{pattern!r} matches nothing, and {closed[0]} cannot be listed",
            fix="Make it readable.",
        )
    if not found:
        raise ConfigError(
            f"inputs={pattern!r} matches nothing",
            f"seen from {Path.cwd()}",
            "Give a glob or a folder, as inputs='books/*.txt'.",
        )
    return found


def _pieces_or_none(file: InputFile, kind: Kind, by_line: bool, left_out: LeftOut) -> list[Piece]:
    pieces = [] if file.size == 0 and kind != "parquet" else list(_pieces(file, kind, by_line))
    if not pieces:
        left_out.add(EMPTY, file.location)
    return pieces


def _pieces(file: InputFile, kind: Kind, by_line: bool) -> Iterator[Piece]:
    """A file in ranges, where its format can be entered in the middle, and its server lets us."""
    location = file.location
    if kind == "text" and not by_line:
        yield Piece("files", (location,), version=file.version)
    elif kind == "tar":
        yield Piece("tar", (location,), version=file.version)
    elif kind == "parquet":
        n_groups = n_row_groups(location)
        n_together = max(1, n_groups * PIECE_BYTES // max(file.size or 0, 1))
        for begin in range(0, n_groups, n_together):
            yield Piece(
                "parquet",
                (location,),
                begin,
                min(begin + n_together, n_groups),
                version=file.version,
            )
    else:
        lines: Format = "jsonl" if kind == "jsonl" else "lines"
        if is_compressed(location) or not file.ranges or file.size is None:
            yield Piece(lines, (location,), version=file.version)
        else:
            for begin in range(0, file.size, PIECE_BYTES):
                yield Piece(lines, (location,), begin, begin + PIECE_BYTES, version=file.version)


def _sources(folder: Path, endings: tuple[str, ...], left_out: LeftOut) -> Iterator[Path]:
    """Files with some endings under a folder, in order."""
    for root, folders, names in walk(folder):
        passed = {name for name in folders if name in _NOT_SOURCE or name.startswith(".")}
        for name in sorted(passed):
            left_out.add(FOLDERS, name)
        folders[:] = [name for name in folders if name not in passed]
        for name in names:
            path = root / name
            if name.startswith("."):
                left_out.add(HIDDEN, str(path))
            elif oddity(path) is not None:
                left_out.add(ODD, str(path))
            elif name.lower().endswith(endings) and name.lower() not in endings:
                yield path
            else:
                left_out.add(OTHER_KINDS, ending_of(path))


def _endings_for(folder: Path, suffixes: Sequence[str]) -> tuple[str, ...]:
    """The endings to read in a folder: of a folder without any source or text, those of JSON lines
    and tables."""
    endings = endings_of(suffixes)
    if suffixes != SOURCE_SUFFIXES or next(_sources(folder, endings, LeftOut()), None) is not None:
        return endings
    return RECORDS if next(_sources(folder, RECORDS, LeftOut()), None) is not None else endings
