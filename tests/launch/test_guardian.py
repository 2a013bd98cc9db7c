"""What a killed driver leaves behind: nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from scaling.launch.ray import cluster, tempdir
from scaling.launch.ray.cluster import RayCluster


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def until(holds, patience_s: float = 30) -> None:
    deadline_s = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


@pytest.mark.parametrize("known_by", ["its command line", "a file that it holds open"])
def test_what_a_killed_driver_started_ends_with_it(temporary: Path, known_by: str) -> None:
    """Two agents of Ray's lived on for 62 s; here a process of its own session stands for them."""
    program = (
        "import subprocess, sys, time; from scaling.launch.ray.tempdir import session_directory; "
        "path = session_directory();"
        "wait = 'import time; time.sleep(60)';"
        "named = [str(path)] if sys.argv[1] == 'its command line' else [];"
        "log = None if named else (path / 'log').open('w');"
        "agent = subprocess.Popen([sys.executable, '-c', wait, *named], stderr=log, "
        "start_new_session=True);"
        "print(agent.pid, path, flush=True); time.sleep(60)"
    )
    environment = os.environ | {"TMPDIR": str(temporary)}
    driver = subprocess.Popen(
        [sys.executable, "-c", program, known_by],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert driver.stdout is not None
    pid, path = driver.stdout.readline().split()
    assert Path(path).is_dir()
    driver.kill()
    driver.wait()
    until(
        lambda: not Path(f"/proc/{pid}").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text()
    )
    until(lambda: not Path(path).exists())


def test_a_driver_ends_by_itself_however_long_its_interpreter_takes(temporary: Path) -> None:
    """Its guardian killed it when the interpreter had closed the pipe, but not yet the logs."""
    program = (
        "import ctypes, os, sys\n"
        "from scaling.launch.ray.tempdir import session_directory\n"
        "held = os.open(session_directory() / 'log', os.O_CREAT | os.O_WRONLY)\n"
        "libc = ctypes.CDLL(None)\n"
        "libc.on_exit(libc.sleep, None)\n"  # gets the exit code: 1 s, when Python is gone
        "sys.exit(1)\n"
    )
    environment = os.environ | {"TMPDIR": str(temporary)}
    assert subprocess.run([sys.executable, "-c", program], env=environment).returncode == 1
    until(lambda: not list(temporary.glob("scaling-ray-*")))


def test_a_directory_of_a_reused_pid_is_removed_and_that_of_a_living_driver_stays(
    temporary: Path,
) -> None:
    stale, living, silent, unnamed = (
        temporary / f"scaling-ray-{os.getpid()}-{name}"
        for name in ("stale", "living", "silent", "unnamed")
    )
    for path in (stale, living, silent, unnamed):
        path.mkdir()
    os.utime(unnamed, (time.time() - 3600,) * 2)  # its driver was killed before it wrote its name
    (stale / "owner.json").write_text(json.dumps(["another start of the kernel", "1234"]))
    (living / "owner.json").write_text(json.dumps(tempdir._identity(os.getpid())))
    own = tempdir.session_directory()
    assert {path.name for path in temporary.iterdir()} == {living.name, silent.name, own.name}


def test_a_store_that_dies_in_the_start_is_seen(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray waited 60 s for it, in silence: it has no record of its processes yet."""
    monkeypatch.setattr(cluster, "_own_node", lambda: None)
    store = temporary / "gcs_server"
    store.symlink_to("/bin/sleep")
    ray = RayCluster.__new__(RayCluster)
    ray.embedded, ray._seen = True, {}
    assert ray.lost_process() is None
    child = subprocess.Popen([str(store), "60"])
    until(lambda: "gcs_server" in cluster._vital_children().values())
    assert ray.lost_process() is None
    child.send_signal(signal.SIGKILL)
    until(lambda: ray.lost_process() == "gcs_server")
    ray._seen = {}  # as of one that dies between two looks
    assert ray.lost_process() == "gcs_server"
    child.wait()
    assert ray.lost_process() == "gcs_server", "one that was seen, and is reaped"
