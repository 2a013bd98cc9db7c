"""A cloud's notice, as its metadata service gives it, reaches the process that drives a run."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "cluster" / "spot_notice.py"
IN_S = 90
"""Seconds until the machine goes, in a notice that says when."""


def _soon() -> datetime:
    return datetime.now(UTC) + timedelta(seconds=IN_S)


ANSWERS = {
    "aws": (
        "/latest/meta-data/spot/instance-action",
        {"X-aws-ec2-metadata-token": "a token"},
        lambda: json.dumps({"action": "terminate", "time": _soon().strftime("%Y-%m-%dT%H:%M:%SZ")}),
        range(60, IN_S + 1),
    ),
    "gcp": (
        "/computeMetadata/v1/instance/preempted",
        {"Metadata-Flavor": "Google"},
        lambda: "TRUE",
        range(30, 31),
    ),
    "azure": (
        "/metadata/scheduledevents?api-version=2020-07-01",
        {"Metadata": "true"},
        lambda: json.dumps(
            {
                "Events": [
                    {"EventType": "Preempt", "NotBefore": format_datetime(_soon(), usegmt=True)}
                ]
            }
        ),
        range(60, IN_S + 1),
    ),
}
QUIET = {"aws": None, "gcp": "FALSE", "azure": json.dumps({"Events": []})}


class Metadata:
    """A metadata service of one cloud: quiet at first, and giving notice once it is told to."""

    def __init__(self, cloud: str) -> None:
        path, headers, notice, _ = ANSWERS[cloud]
        self.asked, self.gone = threading.Semaphore(0), threading.Event()
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                self.answer("a token")

            def do_GET(self) -> None:
                if self.path != path or any(
                    self.headers[name] != value for name, value in headers.items()
                ):
                    self.answer(None)
                    return
                self.answer(notice() if service.gone.is_set() else QUIET[cloud])
                service.asked.release()

            def answer(self, text: str | None) -> None:
                self.send_response(404 if text is None else 200)
                self.end_headers()
                self.wfile.write((text or "").encode())

            def log_message(self, *words: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def driver() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("cloud", ANSWERS)
def test_a_notice_becomes_a_signal(cloud: str, driver: subprocess.Popen[bytes]) -> None:
    metadata = Metadata(cloud)
    command = [sys.executable, str(SCRIPT), cloud, "signal", str(driver.pid)]
    environment = {"SPOT_METADATA": metadata.address, "PATH": "", "no_proxy": "127.0.0.1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as watcher:
        for _ in range(2):
            assert metadata.asked.acquire(timeout=30)
        assert driver.poll() is None, "there was no notice yet"
        metadata.gone.set()
        out, _ = watcher.communicate(timeout=30)
    assert watcher.returncode == 0
    assert driver.wait(30) == -signal.SIGTERM
    assert int(out.split()[-2]) in ANSWERS[cloud][3]


@pytest.mark.parametrize(
    "words", [[], ["aws"], ["aws", "drain", "3"], ["ibm", "drain"], ["gcp", "signal"]]
)
def test_wrong_words_are_told(words: list[str]) -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True)
    assert done.returncode == 2
    assert "spot_notice.py aws drain" in done.stderr
