"""Files behind http and https, read from any place on; what is transient is tried again, from where
it broke off.

Standard library only.
"""

from __future__ import annotations

import email.message
import http.client
import io
import random
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlparse

from scaling.errors import DataError

T = TypeVar("T")

_TRANSIENT = frozenset({408, 425, 429})
"""Answers below 500 that are about the moment and not about the request: timeout, too early, too
many requests."""
_LASTING = (
    ssl.SSLCertVerificationError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
"""Errors that the same request meets again."""
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.5, 30.0
"""Delays between attempts, doubled each time. Each is a random part of that, so that many ranks do
not come back at once. Assumption: the longest is short beside any outage that people notice."""
_PROGRESS_BYTES = 64 << 10
"""So much has to come, or the end, within give_up_s. Assumption: a store that sends less is of no
use to a training run."""


@dataclass(frozen=True)
class Patience:
    """Retry limits for one store. The defaults are assumptions.

    timeout_s: without a byte, after which the request is made again. give_up_s: spent on attempts,
    waits between them and bytes that only trickle in, after which it is an error.
    """

    timeout_s: float = 30.0
    give_up_s: float = 300.0


class HttpFile(io.RawIOBase):
    """A file behind a URL, as a stream that can be entered anywhere where the server answers ranges
    of bytes.

    Raises OSError (an HTTPError, a timeout) when patience is at an end, and DataError when the file
    has changed under the reader. `headers` go to the server named in the URL alone, not to those
    that it points to.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        patience: Patience | None = None,
    ) -> None:
        super().__init__()
        self.url = url
        self._headers = dict(headers or {})
        self._attempts = Attempts(url, patience or Patience())
        self._at = 0
        self._response: http.client.HTTPResponse | None = None
        self._version: tuple[int | None, str | None] | None = None
        self._ranges = False

    @property
    def size(self) -> int | None:
        """Bytes in all; None where the server does not report it."""
        return self._known()[0]

    @property
    def version(self) -> str | None:
        """What distinguishes this version of the file; None where the server gives nothing."""
        return self._known()[1]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        self._known()
        return self._ranges

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            if (size := self.size) is None:
                raise io.UnsupportedOperation(f"{self.url} has no known size")
            offset += size
        elif whence == io.SEEK_CUR:
            offset += self._at
        if offset != self._at:
            self._hang_up()
            self._at = offset
        return offset

    def readinto(self, buffer: Any) -> int:
        if not len(buffer) or (
            self._version is not None
            and self._version[0] is not None
            and self._at >= self._version[0]
        ):
            return 0
        content = self._attempts.until_it_works(lambda: self._read_some(len(buffer)), self._hang_up)
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)

    def close(self) -> None:
        self._hang_up()
        super().close()

    def _hang_up(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None

    def _known(self) -> tuple[int | None, str | None]:
        if self._version is None:
            self._attempts.until_it_works(self._connected, self._hang_up)
        assert self._version is not None
        return self._version

    def _read_some(self, n_bytes: int) -> bytes:
        response = self._connected()
        if response is None:
            return b""
        content = response.read1(n_bytes)
        size = self._known()[0]
        if not content and size is not None and self._at < size:
            raise ConnectionError(f"the connection ended after {self._at} of {size} bytes")
        self._attempts.received(len(content))
        return content

    def _connected(self) -> http.client.HTTPResponse | None:
        """A response that continues at this place; None at the end, of which no range can be
        had."""
        if self._response is not None:
            return self._response
        request = urllib.request.Request(
            self.url, headers={"Range": f"bytes={self._at}-", "Accept-Encoding": "identity"}
        )
        for name, value in self._headers.items():
            request.add_unredirected_header(name, value)
        try:
            response = urllib.request.urlopen(request, timeout=self._attempts.patience.timeout_s)
        except urllib.error.HTTPError as error:
            if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise
            self._version = self._version or (_size_in(error.headers) or 0, None)
            return None
        self._check_version(response)
        self._response = response
        self._ranges = response.status == http.client.PARTIAL_CONTENT
        if not self._ranges:  # all of it, from the beginning
            _pass_over(response, self._at)
        return self._response

    def _check_version(self, response: http.client.HTTPResponse) -> None:
        found = _size_in(response.headers), _version_in(response.headers)
        if self._version is not None and self._version != found:
            response.close()
            raise DataError(
                f"{self.url} changed while it was read: it was {self._version}, and is {found}",
                fix="Start again.",
            )
        self._version = found


class Attempts:
    """What is tried again while it fails in a way that may pass, and while patience lasts."""

    def __init__(self, url: str, patience: Patience) -> None:
        self.url, self.patience = url, patience
        self._waited_s, self._since_progress, self._failures = 0.0, 0, 0

    def until_it_works(
        self, use: Callable[[], T], after_failure: Callable[[], None] = lambda: None
    ) -> T:
        """The result of `use`. Raises OSError."""
        while True:
            begun_s = time.monotonic()
            try:
                result = use()
            except (OSError, http.client.HTTPException) as error:
                after_failure()
                self._failures += 1
                self._waited_s += time.monotonic() - begun_s
                if not is_transient(error) or self._waited_s >= self.patience.give_up_s:
                    raise self._told(error) from error
                delay_s = min(
                    _delay_s(self._failures, error), self.patience.give_up_s - self._waited_s
                )
                time.sleep(delay_s)
                self._waited_s += delay_s
                continue
            self._waited_s += time.monotonic() - begun_s
            if self._waited_s > self.patience.give_up_s:
                raise TimeoutError(
                    f"only {self._since_progress} bytes came in {self._waited_s:.0f} s"
                )
            return result

    def received(self, n_bytes: int) -> None:
        """Take note of bytes that came: enough of them, and patience begins again."""
        self._since_progress += n_bytes
        if self._since_progress >= _PROGRESS_BYTES or n_bytes == 0:
            self._waited_s, self._since_progress, self._failures = 0.0, 0, 0

    def _told(self, error: Exception) -> OSError:
        """`error`, with how often and how long it was tried."""
        if self._failures < 2 and isinstance(error, OSError):
            return error
        return OSError(
            f"{describe(error)} (the last of {self._failures} attempts in {self._waited_s:.0f} s)"
        )


def head(
    url: str, patience: Patience, headers: Mapping[str, str] | None = None
) -> email.message.Message:
    """The headers that a server has for a file. Raises OSError."""

    def ask() -> email.message.Message:
        request = urllib.request.Request(
            url, method="HEAD", headers={"Accept-Encoding": "identity"}
        )
        for name, value in (headers or {}).items():
            request.add_unredirected_header(name, value)
        with urllib.request.urlopen(request, timeout=patience.timeout_s) as response:
            answer: email.message.Message = response.headers
            return answer

    return Attempts(url, patience).until_it_works(ask)


def _version_in(headers: email.message.Message) -> str | None:
    """What distinguishes one version of a file from another."""
    return headers.get("ETag") or headers.get("Last-Modified")


def is_transient(error: BaseException) -> bool:
    """Whether the same request may work a little later; not one that the server calls wrong, or for
    a host that nobody knows."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code in _TRANSIENT or error.code >= 500
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, BaseException):
        return is_transient(error.reason)
    if isinstance(error, socket.gaierror):
        return error.errno == socket.EAI_AGAIN
    return not isinstance(error, _LASTING)


def describe(error: Exception) -> str:
    """A description of an error of the network."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        return describe(error.reason)
    return str(getattr(error, "strerror", None) or error) or type(error).__name__


def is_http(location: str) -> bool:
    return urlparse(location).scheme.lower() in ("http", "https")


def _delay_s(failures: int, error: Exception) -> float:
    """Seconds before the next attempt: what the server asks for, or an exponential back-off."""
    asked = (
        error.headers.get("Retry-After", "")
        if isinstance(error, urllib.error.HTTPError) and error.headers
        else ""
    )
    if asked.isdecimal():
        return min(float(asked), _LONGEST_DELAY_S)
    return float(min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2 ** (failures - 1))) * random.uniform(
        0.5, 1.0
    )


def _size_in(headers: email.message.Message) -> int | None:
    """Bytes of the whole file."""
    total = re.fullmatch(r"bytes (?:\*|\d+-\d+)/(\d+)", headers.get("Content-Range", ""))
    if total:
        return int(total.group(1))
    length = headers.get("Content-Length")
    return int(length) if length is not None else None


def _pass_over(response: http.client.HTTPResponse, n_bytes: int) -> None:
    while n_bytes > 0 and (part := response.read1(min(n_bytes, 1 << 20))):
        n_bytes -= len(part)
