"""What an input that is a URL or the name of a data set stands for: files that are read as a stream
from where they are."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import unquote, urlparse

from scaling.config.paths import exists
from scaling.data.io.fetch import AT_FIRST, scheme_of, unreadable
from scaling.data.io.http import HttpFile
from scaling.data.io.hub import HubName, hub_files
from scaling.data.io.store import DRIVERS, StoreFile, matching_urls

N_THREADS = 16
"""Files looked at at once. Assumption: enough to hide a server's latency."""


@dataclass(frozen=True)
class InputFile:
    """`size` and `version` are None where the server does not report them; `ranges`: it can be
    entered in the middle."""

    location: str
    size: int | None = None
    version: str | None = None
    ranges: bool = False


def is_remote(text: str) -> bool:
    """Whether an input is a URL or a name of the hub, and not a path. Raises DataError for a scheme
    that is not read."""
    return not exists(text) and (
        text.startswith("hf:") or ("://" in text and scheme_of(text) not in ("", "file"))
    )


def name_of(location: str) -> PurePosixPath:
    """The path of a local file or of a URL, whose end shows the format."""
    scheme = scheme_of(location)
    if scheme in DRIVERS:
        return PurePosixPath(location)  # keys of stores are not quoted, and ? is a letter of them
    return PurePosixPath(unquote(urlparse(location).path) if scheme else location)


def find_remote(text: str, commits: dict[str, str]) -> list[InputFile]:
    """The files that an input names. {000..999} in a URL is a range, * in that of a store a glob.

    `commits` as for `hub_files`. Raises DataError for a URL that is not there, ConfigError for a
    name that the hub does not know.
    """
    if (name := HubName.parse(text)) is not None:
        return [
            InputFile(file.url, file.size, file.version, ranges=True)
            for file in hub_files(name, commits)
        ]
    from braceexpand import braceexpand

    with ThreadPoolExecutor(N_THREADS) as pool:
        urls = [url for pattern in braceexpand(text) for url in _matching(pattern)]
        return list(pool.map(_look_at, urls))


def _matching(url: str) -> list[str]:
    """The URL, or where it is a glob of a store, all that it matches."""
    if "*" not in url or scheme_of(url) not in DRIVERS:
        return [url]
    try:
        return matching_urls(url, AT_FIRST)
    except OSError as error:
        raise unreadable(url, error) from error


def _look_at(url: str) -> InputFile:
    try:
        opened: StoreFile | HttpFile = (
            StoreFile(url, AT_FIRST)
            if scheme_of(url) in DRIVERS
            else HttpFile(url, patience=AT_FIRST)
        )
        with opened as file:
            return InputFile(url, file.size, file.version, file.seekable())
    except OSError as error:
        raise unreadable(url, error) from error
