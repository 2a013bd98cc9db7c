"""Files that are complete or absent: atomic writes, whole appended lines, and errors that name the
disk's trouble.

JSON has no NaN and no infinities. Every JSON file here holds the words "NaN", "Infinity" and
"-Infinity" in their place.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from scaling.errors import RunDirError

_BLOCK_BYTES = 1 << 16
WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
"""How JSON files hold numbers that are not finite."""
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_FIXES = {
    errno.ENOSPC: "Free some space, or choose another disk with run.root=DIR; "
    "nothing that was complete is lost",
    errno.EDQUOT: "Your quota is used up: free some space, or choose another disk with "
    "run.root=DIR",
    errno.EROFS: "The file system is read-only: choose a writable directory with run.root=DIR",
    errno.EACCES: "Give yourself write permission there, or choose another directory with "
    "run.root=DIR",
    errno.EPERM: "Give yourself write permission there, or choose another directory with "
    "run.root=DIR",
    errno.ENOTDIR: "A part of this path is a file: move it away, or choose another directory with "
    "run.root=DIR",
    errno.EEXIST: "A file stands where a directory is needed: move it away, or choose another with "
    "run.root=DIR",
    errno.ENAMETOOLONG: "Choose a shorter run.name or run.root",
}


def disk_error(action: str, path: Path, error: OSError) -> RunDirError:
    """The error to raise for an operation on `path` that the system refused: what, where, and what
    would work."""
    name = errno.errorcode.get(error.errno or 0, "unknown error")
    fix = _FIXES.get(error.errno or 0, "Choose another directory with run.root=DIR")
    return RunDirError(
        f"cannot {action} {path}: {error.strerror or error} ({name})", "under run.root", fix + "."
    )


def write_atomic(path: Path, content: bytes | Iterable[bytes]) -> None:
    """Put `content`, whole or in parts, at `path` so that a reader, or a crash, sees all of it or
    what was there before.

    A temporary file beside it is written, synced and renamed, and the directory is synced. Raises
    RunDirError.
    """
    # A name of its own for each write: two drivers never write into one temporary file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync(path.parent)  # the rename itself is on the disk only with its folder
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise disk_error("write", path, error) from error


def portable(value: Any) -> Any:
    """`value` as JSON can hold it: numbers that are not finite become WORDS, in dicts, lists and
    tuples too."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: portable(inner) for key, inner in value.items()}
    return [portable(inner) for inner in value] if isinstance(value, list | tuple) else value


def to_json(value: Any, **style: Any) -> str:
    """`value` as strict JSON, in the style that json.dumps takes."""
    return json.dumps(portable(value), allow_nan=False, **style)


def parse_json(content: str | bytes) -> Any:
    """Read JSON text. Raises ValueError for all that is none, text that is nested too deeply
    included."""
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented strict JSON, atomically. Raises RunDirError."""
    write_atomic(path, (to_json(value, indent=2) + "\n").encode())


def read_object(path: Path, *, strict: bool = True) -> dict[str, Any] | None:
    """The JSON object at `path`; None where there is none.

    A file that cannot be read or is no object raises RunDirError, or is None too when not `strict`.
    """
    try:
        found = parse_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if strict:
            raise disk_error("read", path, error) from error
        return None
    except ValueError:
        found = None
    if strict and not isinstance(found, dict):
        fix = (
            "It is written atomically, so something else wrote it: restore it, "
            "or delete it and run the same command again."
        )
        raise RunDirError(f"{path} is damaged: it holds no JSON object", fix=fix)
    return found if isinstance(found, dict) else None


def set_aside(path: Path) -> Path:
    """Rename what is at `path` to its name with .damaged behind it, and a number where that is
    taken. Raises RunDirError."""
    aside = free_name(path)
    try:
        os.replace(path, aside)
    except OSError as error:
        raise disk_error("rename", path, error) from error
    return aside


def free_name(path: Path) -> Path:
    """A name beside `path` for a damaged file, that nothing has yet."""
    names = (
        path.with_name(f"{path.name}{number}.damaged")
        for number in ("", *(f".{n}" for n in range(2, 10_000)))
    )
    return next(name for name in names if not os.path.lexists(name))


def append_line(path: Path, text: str, *, sync: bool = False) -> None:
    """Append one line to `path` in one write, after mending an end that an earlier crash tore.

    On a full disk the file is cut back to what it was. `sync` waits until the line is on the disk.
    Raises RunDirError.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            with locked(fd):
                size = _mend_end(fd)
                _write_or_cut(fd, text.encode() + b"\n", size)
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise disk_error("append to", path, error) from error


def split_lines(content: bytes) -> tuple[list[bytes], bytes]:
    """The whole lines of a JSON-lines file, and the torn end ("" where there is none).

    A last line without its newline is whole when it parses: JSON objects have no proper prefix that
    does.
    """
    *lines, end = content.split(b"\n")
    if end and _parses(end):
        lines, end = [*lines, end], b""
    return lines, end


def whole_lines(path: Path) -> Iterator[bytes]:
    """The whole lines of a JSON-lines file as in `split_lines`, one at a time: the file may be
    larger than memory."""
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line[:-1]
            elif _parses(line):
                yield line


def last_lines(path: Path, n_bytes: int) -> list[bytes]:
    """The whole lines among the last `n_bytes` of a JSON-lines file."""
    with path.open("rb") as file:
        start = max(0, file.seek(0, os.SEEK_END) - n_bytes)
        file.seek(start)
        lines, _ = split_lines(file.read())
    # Reading began somewhere inside the first line.
    return lines[1:] if start else lines


def _parses(line: bytes) -> bool:
    try:
        parse_json(line)
    except ValueError:
        return False
    return True


def _mend_end(fd: int) -> int:
    """Finish or cut off a last line that lacks its newline; returns the size of the file in
    bytes."""
    size = os.fstat(fd).st_size
    if size == 0 or os.pread(fd, 1, size - 1) == b"\n":
        return size
    start, content = size, b""
    while start > 0 and b"\n" not in content:
        length = min(start, _BLOCK_BYTES)
        start -= length
        content = os.pread(fd, length, start) + content
    end = content.rpartition(b"\n")[2]
    # The crash may have come between the line and its newline: such a line is whole.
    if _parses(end):
        return size + os.write(fd, b"\n")
    os.ftruncate(fd, size - len(end))
    return size - len(end)


def _write_or_cut(fd: int, line: bytes, size: int) -> None:
    try:
        done = 0  # a disk that fills up takes a part of a write
        while done < len(line):
            done += os.write(fd, line[done:])
    except OSError:
        os.ftruncate(fd, size)
        raise


@contextlib.contextmanager
def locked(fd: int) -> Iterator[None]:
    """Keep others that do the same out while the context lasts, where the file system has locks."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    yield


def sync(path: Path) -> None:
    """Wait until the file at `path`, and its name, are on the disk; nothing where there is no file.
    Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        fsync(path)
        fsync(path.parent)


def remove(path: Path) -> None:
    """Remove what is at `path`: a folder with all in it, a file, or a link and not what it leads
    to. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def fsync(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk. Raises
    OSError."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
