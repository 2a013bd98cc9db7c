"""Find out whether a server answers, within a bounded time."""

from __future__ import annotations

import contextlib
import socket
import threading
import urllib.request
from urllib.parse import urlsplit

CONNECT_TIMEOUT_S = 3.0
"""Assumption: a server that takes longer to answer is not worth a wait at every start."""


def reachable(url: str, timeout_s: float = CONNECT_TIMEOUT_S) -> bool:
    """Whether the host of `url`, or the proxy that leads to it, accepts a connection within
    `timeout_s` seconds."""
    target = urlsplit(url)
    proxy = urllib.request.getproxies().get(target.scheme)
    if proxy and not urllib.request.proxy_bypass(target.hostname or ""):
        target = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    port = target.port or (443 if target.scheme == "https" else 80)
    answered = threading.Event()

    def connect() -> None:
        with (
            contextlib.suppress(OSError),
            socket.create_connection((target.hostname or "", port), timeout=timeout_s),
        ):
            answered.set()

    # In a thread, since looking up a name has a time-out of its own that no caller can set.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(timeout_s)
    return answered.is_set()
