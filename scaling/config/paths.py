"""Paths as people write them: with ~, as file: URLs, with commas and with letters that patterns
give a meaning."""

from __future__ import annotations

import glob
import os
import re
import stat
from itertools import accumulate
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
    folder, pattern = _parted(path)
    found = _glob(folder, pattern)
    if "**" not in pattern:
        return found
    # links may go round in circles
    real = {os.path.realpath(match): match for match in sorted(found, key=len, reverse=True)}
    return sorted(match for path, match in real.items() if not os.path.isdir(path))


def hidden_matching(text: str) -> list[str]:
    """Absolute paths, sorted, that a pattern would match if it matched hidden names too."""
    path = plain(text)
    if os.path.lexists(path):
        return []
    folder, pattern = _parted(path)
    shown = set(_glob(folder, pattern))
    return [match for match in _glob(folder, pattern, include_hidden=True) if match not in shown]


def closed_folders(text: str) -> list[str]:
    """Absolute paths, sorted, of the folders that a pattern looks into and that cannot be
    listed."""
    path = plain(text)
    if os.path.lexists(path):
        return []
    folder, pattern = _parted(path)
    parts = pattern.split("/")
    above = ["/".join(parts[:n]) for n in range(1, len(parts))]
    if parts[-1] == "**":
        above.append(pattern)
    inside = (found for one in above for found in _glob(folder, f"{one}/"))
    real = {os.path.realpath(found): found for found in (os.path.abspath(folder), *inside)}
    # glob itself passes over what it cannot list, without an error
    return sorted(found for found in real.values() if not _is_listable(found))


def _is_listable(folder: str) -> bool:
    try:
        os.scandir(folder).close()
    except OSError:
        return False
    return True


def _glob(folder: str, pattern: str, *, include_hidden: bool = False) -> list[str]:
    whole = glob.escape(folder) + pattern
    return sorted(
        map(os.path.abspath, glob.glob(whole, recursive=True, include_hidden=include_hidden))
    )


def _parted(path: str) -> tuple[str, str]:
    """The longest folder at the beginning of a path that exists under this very name, with its
    slash, and the rest."""
    ends = [at + 1 for at, letter in enumerate(path) if letter == "/"]
    end = next((end for end in reversed(ends) if os.path.isdir(path[:end])), 0)
    return path[:end], path[end:]


def split_paths(text: str) -> tuple[str, ...]:
    """Paths, patterns and URLs with commas between, in brackets or without.

    Commas in braces, and in names and folders that exist, are no such commas.
    """
    inner = without_brackets(text)
    if inner is not None and matching(text):  # a pattern, of letters to choose from
        inner = None
    words = re.split(r",(?![^{}]*})", text if inner is None else inner)
    found: list[str] = []
    while words:
        n = next((n for n in range(len(words), 1, -1) if _is_one(words[:n])), 1)
        word = ",".join(words[:n])
        found += [word if inner is None else unquoted(word)]
        words = words[n:]
    return tuple(word for word in found if word)


def _is_one(words: list[str]) -> bool:
    """Whether words that commas part are one path: it exists, or its folder does, up to the last
    word."""
    path = plain(",".join(words))
    _, rest = _parted(path)
    return os.path.lexists(path) or rest.count(",") <= words[-1].count(",")


def split_words(text: str) -> tuple[str, ...]:
    """Words with commas between, in brackets (as Hydra writes a list) or without."""
    inner = without_brackets(text)
    words = (text if inner is None else inner).split(",")
    return tuple(word for word in map(unquoted, words) if word)


def without_brackets(text: str) -> str | None:
    """What stands between the brackets around a whole text; None where it has none."""
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return None
    depths = list(accumulate((letter == "[") - (letter == "]") for letter in text))
    return text[1:-1] if 0 not in depths[:-1] else None


def unquoted(word: str) -> str:
    """The word without blanks around it, and then without a pair of quotes."""
    word = word.strip()
    return word[1:-1] if len(word) > 1 and word[0] == word[-1] and word[0] in "'\"" else word


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
