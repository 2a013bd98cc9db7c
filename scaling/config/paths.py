"""Paths as people write them: with ~, as file: URLs, with commas and with letters that patterns
give a meaning."""

from __future__ import annotations

import glob
import os
import re
import stat
from urllib.parse import unquote

_FILE_URL = re.compile(r"file:(//(localhost)?)?(?=/)", re.IGNORECASE)
_NOT_FILES = (
    (stat.S_ISFIFO, "is a pipe"),
    (stat.S_ISSOCK, "is a socket"),
    (stat.S_ISCHR, "is a device"),
    (stat.S_ISBLK, "is a disk"),
)


def plain(text: str) -> str:
    """The path or pattern that is meant: what exists under this very name, or with file: and ~
    replaced."""
    if os.path.lexists(text):
        return text
    if url := _FILE_URL.match(text):
        return unquote(text[url.end() :])
    return os.path.expanduser(text)


def exists(text: str) -> bool:
    """Whether a path, written in any of these ways, is there as it stands; a link to nothing is."""
    return os.path.lexists(plain(text))


def matching(text: str) -> list[str]:
    """Absolute paths, sorted: the path itself where it exists, and otherwise those that it matches
    as a pattern.

    ** crosses folders, which are then no matches themselves. A file that several links lead to is
    given once.
    """
    path = plain(text)
    if os.path.lexists(path):
        return [os.path.abspath(path)]
    found = sorted(map(os.path.abspath, glob.glob(path, recursive=True)))
    if "**" not in path:
        return found
    # links may go round in circles
    real = {os.path.realpath(match): match for match in sorted(found, key=len, reverse=True)}
    return sorted(match for path, match in real.items() if not os.path.isdir(path))


def split_paths(text: str) -> tuple[str, ...]:
    """Paths, patterns and URLs with commas between, but for commas in braces and in names that
    exist."""
    words = re.split(r",(?![^{}]*})", text)
    found: list[str] = []
    while words:
        n = next((n for n in range(len(words), 1, -1) if exists(",".join(words[:n]))), 1)
        found += [word for word in [",".join(words[:n])] if word]
        words = words[n:]
    return tuple(found)


def oddity(path: str | os.PathLike[str]) -> str | None:
    """Why a path that is there cannot be read as a file or folder: "is a link to nothing (x)"; None
    where it can."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if os.path.islink(path):
            return f"is a link to nothing ({os.readlink(path)})"
        return f"cannot be looked at ({error.strerror})"
    return next((what for is_kind, what in _NOT_FILES if is_kind(mode)), None)
