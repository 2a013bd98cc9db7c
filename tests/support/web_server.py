"""A web server on loopback for tests: files with ranges and versions, that fails on demand."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

Fault = int | float | str | None
"""An HTTP status; "cut": the connection ends half way; a number below 1: seconds before every small
piece; None: no fault."""


@dataclass
class Web:
    """What is behind `url`. `faults`: of a path, those of its next answers; `asked`, `headers`: of
    every request."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    answers: dict[str, Any] = field(default_factory=dict)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    ranges: bool = True
    head: bool = True

    def add(self, directory: Path) -> Web:
        self.files |= {
            f"/{path.relative_to(directory)}": path.read_bytes()
            for path in directory.rglob("*")
            if path.is_file()
        }
        return self

    def gets(self, path: str) -> list[str]:
        """The ranges asked of a file."""
        return [asked for method, name, asked in self.asked if method == "GET" and name == path]


@contextlib.contextmanager
def serving(monkeypatch: pytest.MonkeyPatch, **options: Any) -> Iterator[Web]:
    web = Web(**options)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(web)) as httpd:
        httpd.daemon_threads = True
        web.url = f"http://127.0.0.1:{httpd.server_port}"
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield web
        finally:
            httpd.shutdown()
            thread.join()


def _handler(web: Web) -> Callable[..., http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            """Keep the test's output clean."""

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, with_body: bool) -> None:
            path = unquote(self.path.partition("?")[0])
            web.asked.append((self.command, path, self.headers.get("Range", "")))
            web.headers.append(dict(self.headers.items()))
            if path in web.answers and path not in web.files:
                return self._send(
                    200,
                    json.dumps(web.answers[path]).encode(),
                    with_body,
                    {"Content-Type": "application/json"},
                )
            if path not in web.files or (not with_body and not web.head):
                return self._send(404 if path not in web.files else 405, b"", with_body)
            fault = web.faults[path].pop(0) if web.faults.get(path) else None
            if isinstance(fault, int):
                return self._send(
                    fault, b"", with_body, {"Retry-After": "0"} if fault == 429 else {}
                )
            content = web.files[path]
            headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()[:16]}"'}
            asked = (
                re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
                if web.ranges
                else None
            )
            status = 200
            if asked:
                begin, end = int(asked[1]), int(asked[2] or len(content) - 1)
                if begin >= len(content):
                    return self._send(
                        416, b"", with_body, {"Content-Range": f"bytes */{len(content)}"}
                    )
                headers["Content-Range"] = f"bytes {begin}-{end}/{len(content)}"
                content, status = content[begin : end + 1], 206
            self._send(status, content, with_body, headers, fault)

        def _send(
            self,
            status: int,
            content: bytes,
            with_body: bool,
            headers: dict[str, str] | None = None,
            fault: Fault = None,
        ) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            if not with_body:
                return
            with contextlib.suppress(ConnectionError):
                if fault == "cut":
                    self.wfile.write(content[: len(content) // 2])
                    self.close_connection = True
                elif fault:
                    for at in range(0, len(content), 100):
                        time.sleep(float(fault))
                        self.wfile.write(content[at : at + 100])
                else:
                    self.wfile.write(content)

    return Handler
