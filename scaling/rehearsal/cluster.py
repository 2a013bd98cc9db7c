"""Machines that come and go, imitated on one: a Ray cluster of our own, with a node of one worker
for each."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from scaling.errors import LaunchError
from scaling.rehearsal.processes import descendants

_START_S = 120.0
"""Longest wait for one of them: assumption."""
_STARTED = "Ray runtime started"
_OBJECT_STORE_BYTES = 80 * 2**20


class Nodes:
    """Entered, the head and `n` nodes run; left, none of them.

    Ray lets no node join over loopback: these listen on the machine's own address, behind a token
    that only the drill knows.
    """

    def __init__(self, n: int, directory: Path, threads: int) -> None:
        self._n, self._threads, self._log = n, threads, directory / "ray.log"
        self._temp = f"/tmp/scaling-drill-{os.getpid()}"
        self._port = _free_port()
        self.address = f"127.0.0.1:{self._port}"
        self._head: subprocess.Popen[bytes] | None = None
        self.nodes: list[subprocess.Popen[bytes]] = []
        self.environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "GLOO_SOCKET_IFNAME": "lo",
        }

    def __enter__(self) -> Nodes:
        try:
            self._head = self._start(
                "--head",
                f"--port={self._port}",
                "--num-cpus=0",
                "--include-dashboard=false",
                f"--temp-dir={self._temp}",
            )
            self._wait(self._head, 1)
            # one after another: several at a time may take longer than Ray allows for
            for number in range(self._n):
                self.add()
                self._wait(self.nodes[-1], 2 + number)
        except BaseException:  # Ctrl-C and SIGTERM, too: nobody else knows of what has been started
            self.__exit__()
            raise
        return self

    def _wait(self, newest: subprocess.Popen[bytes], n_started: int) -> None:
        """Wait until Ray reports so many running machines, of which `newest` is one."""
        deadline_s = time.monotonic() + _START_S
        while self._log.read_text(errors="replace").count(_STARTED) < n_started:
            if newest.poll() is not None or time.monotonic() > deadline_s:
                raise LaunchError(
                    "the drill's Ray cluster does not start",
                    f"see {self._log}",
                    "Try nodes=0, which needs none.",
                )
            time.sleep(0.2)

    def add(self) -> None:
        """One machine more."""
        self.nodes.append(self._start(f"--address={self.address}", f"--num-cpus={self._threads}"))

    def _start(self, *words: str) -> subprocess.Popen[bytes]:
        command = [
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "start",
            "--block",
            f"--object-store-memory={_OBJECT_STORE_BYTES}",
            *words,
        ]
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
        return [
            process.pid
            for process in (*self.nodes, *([self._head] if self._head else []))
            if process.poll() is None
        ]

    @property
    def living(self) -> list[int]:
        """Process ids of the nodes, without the head."""
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
