"""Machines that come and go, imitated on one: a Ray cluster of our own, with a node of one worker for each."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from scaling.errors import LaunchError
from scaling.rehearsal.processes import NODE, by_kind, descendants

_START_S = 120.0
"""Longest wait for Ray's head, and then for the nodes: assumption."""
_OBJECT_STORE_BYTES = 80 * 2**20


class Nodes:
    """Entered, the head and `n` nodes run; left, none of them.

    Ray lets no node join over loopback: these listen on the machine's own address, behind a token that only the drill knows.
    """

    def __init__(self, n: int, directory: Path, threads: int) -> None:
        self._n, self._threads, self._log = n, threads, directory / "ray.log"
        self._temp = f"/tmp/scaling-drill-{os.getpid()}"
        self._port = _free_port()
        self.address = f"127.0.0.1:{self._port}"
        self._head: subprocess.Popen[bytes] | None = None
        self.nodes: list[subprocess.Popen[bytes]] = []
        self.environment = {
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0",
            "GLOO_SOCKET_IFNAME": "lo",
        }  # fmt: skip

    def __enter__(self) -> Nodes:
        self._head = self._start(
            "--head", f"--port={self._port}", "--num-cpus=0", "--include-dashboard=false", f"--temp-dir={self._temp}"
        )
        try:
            self._wait([self._head], lambda: _answers(self._port))
            for _ in range(self._n):
                self.add()
            self._wait(self.nodes, lambda: all(NODE in by_kind(node.pid) for node in self.nodes))
        except LaunchError:
            self.__exit__()
            raise
        return self

    def _wait(self, started: Sequence[subprocess.Popen[bytes]], is_up: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + _START_S
        while not is_up():
            if any(process.poll() is not None for process in started) or time.monotonic() > deadline_s:
                raise LaunchError("the drill's Ray cluster does not start", f"see {self._log}", "Try nodes=0, which needs none.")
            time.sleep(0.2)

    def add(self) -> None:
        """One machine more."""
        self.nodes.append(self._start(f"--address={self.address}", f"--num-cpus={self._threads}"))

    def _start(self, *words: str) -> subprocess.Popen[bytes]:
        command = [
            sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--node-ip-address=127.0.0.1",
            f"--object-store-memory={_OBJECT_STORE_BYTES}", *words,
        ]  # fmt: skip
        with self._log.open("ab") as log:
            return subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=os.environ | self.environment,
                start_new_session=True,
            )

    @property
    def roots(self) -> list[int]:
        """Processes below which all of the cluster's are."""
        return [process.pid for process in (*self.nodes, *([self._head] if self._head else [])) if process.poll() is None]

    @property
    def living(self) -> list[int]:
        """Of the nodes, not the head."""
        self.nodes = [node for node in self.nodes if node.poll() is None]
        return [node.pid for node in self.nodes]

    def __exit__(self, *exc: object) -> None:
        for process in (*self.nodes, *([self._head] if self._head else [])):
            for pid in [*descendants(process.pid), process.pid]:
                _kill(pid)
            process.wait()
        shutil.rmtree(self._temp, ignore_errors=True)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
