"""Pieces of a source, each small enough for one task, and the documents in them, read as a
stream."""

from __future__ import annotations

import gzip
import json
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

from scaling.data.io.fetch import scheme_of
from scaling.data.io.open_input import binary_values, is_text, open_bytes, open_parquet, size_of
from scaling.data.prepare.sources import (
    Source,
    UnfitInput,
    UnfitText,
    decoded,
    read_pairs,
    unreadable,
    without_mark,
)
from scaling.errors import DataError

Format = Literal["files", "pairs", "lines", "jsonl", "parquet", "tar"]
PIECE_BYTES = 32 << 20
"""Input that one task reads, where it can be cut. Assumption: some seconds of work, so that
a kill costs no more."""
LARGEST_DOCUMENT_BYTES = 64 << 20
"""Assumption: above that it is a corpus in one file, by mistake."""
_ROWS = 256  # of a parquet file read at once; assumption: few megabytes
_NEWLINES = b"\r\n"


@dataclass(frozen=True)
class Piece:
    """What one task reads: files, or a range of one file (`begin` to `end`: bytes of lines, row
    groups of parquet).

    files: each is a document; pairs: source TAB target, or two files; lines, jsonl: each line is
    one; parquet: each row; tar: each member of the wanted extension. `locations`: paths or URLs;
    `version`: of a remote one, what its server gives each version of it. `lenient`:
    documents that cannot be read are left out and counted.
    """

    format: Format
    locations: tuple[str, ...]
    begin: int = 0
    end: int | None = None
    lenient: bool = False
    held_out: bool = False
    version: str | None = None


@dataclass(frozen=True)
class Reading:
    """How documents are found: the field of JSON objects and parquet rows, the extension of tar
    members, the size allowed."""

    field: str = "text"
    member: str = "txt"
    max_bytes: int | None = None


def pieces_of(source: Source) -> tuple[Piece, ...]:
    """The pieces of a source of the configuration, those held out by name last."""
    if not source.pairs:
        held_out = group_files(source.val_files, lenient=not source.strict, held_out=True)
        return (*group_files(source.files, lenient=not source.strict), *held_out)
    return (
        *(Piece("pairs", _sides(path, source.target_file)) for path in source.files),
        *(
            Piece("pairs", _sides(path, source.val_target_file), held_out=True)
            for path in source.val_files
        ),
    )


def _sides(path: Path, target_file: Path | None) -> tuple[str, ...]:
    return (str(path), str(target_file)) if target_file is not None else (str(path),)


def group_files(
    paths: Iterable[Path], *, lenient: bool = False, held_out: bool = False
) -> Iterator[Piece]:
    """Files that are a document each, about PIECE_BYTES together. Raises DataError for one that is
    not there."""
    group: list[str] = []
    size = 0
    for path in paths:
        size += size_of(path)
        group.append(str(path))
        if size >= PIECE_BYTES:
            yield Piece("files", tuple(group), lenient=lenient, held_out=held_out)
            group, size = [], 0
    if group:
        yield Piece("files", tuple(group), lenient=lenient, held_out=held_out)


def local_paths(pieces: Iterable[Piece]) -> list[Path]:
    """Every file of this machine that pieces read, once."""
    locations = dict.fromkeys(location for piece in pieces for location in piece.locations)
    return [Path(location) for location in locations if not scheme_of(location)]


def read_piece(piece: Piece, reading: Reading) -> Iterator[str | UnfitText]:
    """The documents in order; in place of one that is unfit, the error that says why. Raises
    DataError for unreadable files."""
    read = {
        "files": _files,
        "pairs": _pairs,
        "lines": _text_lines,
        "jsonl": _objects,
        "parquet": _rows,
        "tar": _members,
    }
    try:
        yield from read[piece.format](piece, reading)
    except (EOFError, zlib.error, tarfile.TarError, gzip.BadGzipFile) as error:
        raise _damaged(piece, error) from error
    except OSError as error:
        remote = scheme_of(piece.locations[0]) != ""
        raise (
            unreadable(piece.locations[0], error)
            if error.errno or remote
            else _damaged(piece, error)
        ) from error


def _damaged(piece: Piece, error: Exception) -> DataError:
    return UnfitInput(
        f"{piece.locations[0]} is damaged: {error}", fix="Copy it again, or leave it out."
    )


def _files(piece: Piece, reading: Reading) -> Iterator[str | UnfitText]:
    for location in piece.locations:
        with open_bytes(location) as file:
            content = file.read(-1 if reading.max_bytes is None else reading.max_bytes + 1)
        yield _checked(content, location, reading, begins=True)


def _pairs(piece: Piece, reading: Reading) -> Iterator[str | UnfitText]:
    source, *targets = map(Path, piece.locations)
    for _, text in read_pairs(
        Source((source,), strict=True, pairs=True, target_file=targets[0] if targets else None)
    ):
        yield text


def _text_lines(piece: Piece, reading: Reading) -> Iterator[str | UnfitText]:
    for place, line in _lines(piece, reading):
        yield _checked(line.rstrip(_NEWLINES), place, reading)


def _objects(piece: Piece, reading: Reading) -> Iterator[str | UnfitText]:
    for place, line in _lines(piece, reading):
        # files that were joined have marks inside
        text = _checked(line, place, reading, begins=True)
        if isinstance(text, UnfitText) or text.strip():
            yield text if isinstance(text, UnfitText) else _field(text, place, reading)


def _field(text: str, place: str, reading: Reading) -> str | UnfitText:
    """The document in a JSON object."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        return UnfitText(f"{place} is not JSON: {error}", fix="One JSON object a line.")
    if not isinstance(found, dict):
        return UnfitText(
            f"{place} is {_JSON_NAMES[type(found)]}, not an object", fix="One JSON object a line."
        )
    if reading.field not in found:
        what = f"{place} has no text in {reading.field!r}, but: {', '.join(sorted(found))}"
        return UnfitText(what, fix="Name the field with field=NAME.")
    value = found[reading.field]
    return (
        _encodable(value, place)
        if isinstance(value, str)
        else _no_text(place, reading, _JSON_NAMES[type(value)])
    )


_JSON_NAMES = {
    type(None): "null",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "an array",
    dict: "an object",
}
_NO_TEXT_FIX = (
    "Correct or leave out that document; on_bad=skip of scaling.prepare leaves out all such."
)


def _no_text(place: str, reading: Reading, found: str) -> UnfitText:
    return UnfitText(f"{place} has {found} in {reading.field!r}, and no text", fix=_NO_TEXT_FIX)


def _lines(piece: Piece, reading: Reading) -> Iterator[tuple[str, bytes]]:
    """(where, line) of those lines that begin in the range; a line too long is cut where that can
    still be seen."""
    location, at = piece.locations[0], piece.begin
    # JSON escapes a character by six bytes at most
    limit = -1 if reading.max_bytes is None else 6 * reading.max_bytes + 4096
    with open_bytes(location) as file:
        if at:
            file.seek(at - 1)
            at += _skip_line(file) - 1  # the line that continues here belongs to the piece before
        while (piece.end is None or at < piece.end) and (line := file.readline(limit)):
            place, length = f"the line at byte {at} of {location}", len(line)
            if length == limit and not line.endswith(b"\n"):
                length += _skip_line(file)
            yield place, without_mark(line) if at == 0 else line
            at += length


def _skip_line(file: IO[bytes]) -> int:
    """Read to the end of the line; returns the bytes passed over."""
    n_bytes = 0
    while part := file.readline(1 << 20):
        n_bytes += len(part)
        if part.endswith(b"\n"):
            break
    return n_bytes


def _rows(piece: Piece, reading: Reading) -> Iterator[str | UnfitText]:
    location = piece.locations[0]
    with open_parquet(location) as file:
        schema = file.schema_arrow
        if reading.field not in schema.names:
            has = ", ".join(schema.names)
            raise UnfitInput(
                f"{location} has no column {reading.field!r}, but: {has}",
                fix="Name the column with field=NAME.",
            )
        if not is_text(schema.field(reading.field).type):
            has = ", ".join(name for name in schema.names if is_text(schema.field(name).type))
            raise UnfitInput(
                f"{location} has {schema.field(reading.field).type} in column "
                f"{reading.field!r}, and no text",
                fix=f"Columns of text are: {has}; name one with field=NAME."
                if has
                else "It has no column of text.",
            )
        groups = range(piece.begin, file.num_row_groups if piece.end is None else piece.end)
        number = 0
        for batch in file.iter_batches(_ROWS, row_groups=groups, columns=[reading.field]):
            for content in binary_values(batch.column(0)):
                place = f"row {number} from row group {piece.begin} of {location}"
                number += 1
                yield (
                    _no_text(place, reading, "null")
                    if content is None
                    else _checked(content, place, reading)
                )


def _members(piece: Piece, reading: Reading) -> Iterator[str | UnfitText]:
    """Members are read as a stream, in order; their names are compared, never used as paths."""
    location, found = piece.locations[0], False
    with open_bytes(location) as file, tarfile.open(fileobj=file, mode="r|") as tar:
        for member in tar:
            cast(Any, tar).members = []  # the library would keep every one
            _, _, extension = Path(member.name).name.partition(".")
            if not member.isfile() or extension != reading.member:
                continue
            found, place = True, f"member {member.name!r} of {location}"
            content = tar.extractfile(member)
            assert content is not None
            text = _checked(
                content.read(-1 if reading.max_bytes is None else reading.max_bytes + 1),
                place,
                reading,
                begins=True,
            )
            yield (
                text
                if extension != "json" or isinstance(text, UnfitText)
                else _field(text, place, reading)
            )
    if not found:
        raise UnfitInput(
            f"{location} has no member KEY.{reading.member}",
            fix="Name the extension of texts with member=EXTENSION.",
        )


def _checked(
    content: bytes, place: str, reading: Reading, *, begins: bool = False
) -> str | UnfitText:
    """The text of a document; `begins`: it begins a file, and so perhaps with a byte order mark."""
    if reading.max_bytes is not None and len(content) > reading.max_bytes:
        return UnfitText(
            f"{place} is longer than max_document={reading.max_bytes} bytes",
            fix="Cut it into documents (document=line makes one of every line of .txt files), "
            "or raise max_document.",
        )
    try:
        return decoded(without_mark(content) if begins else content, place)
    except UnfitText as error:
        return error


def _encodable(text: str, place: str) -> str | UnfitText:
    r"""JSON may hold halves of surrogate pairs, as "\ud83d" alone, which no encoding can write."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return UnfitText(
            f"{place} holds half of a surrogate pair: {error}",
            fix="Correct or leave out that document.",
        )
    return text
