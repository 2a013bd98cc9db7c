"""The lock between machines that share a disk: a beat tells a living driver, and a dead one holds
no longer than a lease."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scaling.errors import LaunchError, RunDirError, SupersededError
from scaling.runs import lock as driver_lock
from scaling.runs.directory import RunDir
from scaling.runs.lock import DriverLock

ELSEWHERE = {
    "host": "node7",
    "machine": "another kernel",
    "pid": 4711,
    "started": "2026-11-01T00:00:00+00:00",
    "token": "0123",
    "beat": 5,
}


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DriverLock:
    monkeypatch.setattr(driver_lock, "LEASE_S", 1.5)
    monkeypatch.setattr(driver_lock, "_BEAT_S", 0.02)
    monkeypatch.setattr(driver_lock, "_SETTLING_S", 0.3)
    return DriverLock(tmp_path / "driver.lock")


@pytest.fixture
def beating(lock: DriverLock) -> Iterator[None]:
    """A driver on another machine that is alive."""
    done = threading.Event()

    def beat() -> None:
        owner = dict(ELSEWHERE)
        while not done.wait(0.02):
            owner["beat"] = int(str(owner["beat"])) + 1
            with lock.path.open("r+") as file:  # as a driver does: it is never empty in between
                file.write(json.dumps(owner))

    lock.path.write_text(json.dumps(ELSEWHERE))
    thread = threading.Thread(target=beat)
    thread.start()
    yield
    done.set()
    thread.join()


def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


def held_by_the_system(path: Path) -> int:
    """The lock as a machine that has gone leaves it on a server: nobody gives it back."""
    fd = os.open(path, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return fd


def test_a_dead_driver_of_another_machine_is_waited_for_and_no_longer(lock: DriverLock) -> None:
    lock.path.write_text(json.dumps(ELSEWHERE))
    said: list[str] = []
    with lock.hold(said.append):
        owner = lock.owner()
        assert owner is not None
        assert owner["pid"] == os.getpid()
    assert said == [
        "This run was driven by pid 4711 on node7: waiting 2 s to see whether it is alive."
    ]
    assert lock.path.read_text() == ""
    with lock.hold(said.append):
        pass
    assert len(said) == 1, "nobody is waited for who has left in order"


def test_a_living_driver_of_another_machine_is_named_where_locks_stop_at_the_machine(
    lock: DriverLock, beating: None
) -> None:
    with (
        pytest.raises(
            RunDirError, match="in use by another driver: pid 4711 on node7 since 2026"
        ) as caught,
        lock.hold(print),
    ):
        pass
    assert "kill 4711 on node7" in str(caught.value)
    assert lock.is_held()


def test_the_lock_that_a_lost_machine_has_left_on_the_server_is_broken(
    lock: DriverLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock.path.write_text(json.dumps(ELSEWHERE))
    fd = held_by_the_system(lock.path)
    with lock.hold(lambda _: None):
        owner = lock.owner()
        assert owner is not None
        assert owner["pid"] == os.getpid()
        with (
            pytest.raises(RunDirError, match=f"pid {os.getpid()}"),
            DriverLock(lock.path).hold(print),
        ):
            pass
    os.close(fd)


def test_a_driver_whose_lock_was_taken_over_leaves(
    lock: DriverLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = threading.Event()
    monkeypatch.setattr(
        os,
        "kill",
        lambda pid, number: asked.set() if (pid, number) == (os.getpid(), signal.SIGTERM) else None,
    )
    with lock.hold():
        other = lock.path.with_name("other")
        other.write_text(json.dumps(ELSEWHERE))
        os.replace(other, lock.path)
        assert asked.wait(20)
    assert json.loads(lock.path.read_text()) == ELSEWHERE, (
        "the lock is the other's, and stays as it is"
    )


@pytest.mark.parametrize("left", [json.dumps(ELSEWHERE), ""], ids=["drives", "is done"])
def test_a_superseded_driver_that_wakes_writes_nothing(tmp_path: Path, left: str) -> None:
    """It marked a run "failed" that the other one had finished; a lock that another gave back was
    taken for its own."""
    run_dir = RunDir(tmp_path / "run").create()
    with run_dir.lock():
        RunDir(run_dir.path).event("start")
        run_dir.write_progress("w", 3, {"productive": 1.0})
        other = run_dir.path / "other"
        other.write_text(left)
        os.replace(other, run_dir.path / "driver.lock")
        other.write_text(run_dir.events.read_text() + '{"kind":"finished","time_s":1.0}\n')
        os.replace(other, run_dir.events)
        for write in (
            lambda: run_dir.failed(LaunchError("the workers ended")),
            lambda: RunDir(run_dir.path).event("preempted"),
            lambda: run_dir.write_summary({}),
        ):
            with pytest.raises(
                SupersededError, match="taken over from this driver while it stood still"
            ):
                write()
    assert RunDir(run_dir.path).state() == "finished"
    assert not (run_dir.path / "summary.json").exists()
    assert (run_dir.path / "driver.lock").read_text() == left
    # of one who holds nothing, as a worker: its fence is another
    RunDir(run_dir.path).event("start")


def test_the_beat_goes_on_while_the_lock_is_held(lock: DriverLock) -> None:
    with lock.hold():
        first = lock.owner()
        deadline_s = time.monotonic() + 20
        while (now := lock.owner()) is None or first is None or now["beat"] <= first["beat"]:
            first = first or now
            assert time.monotonic() < deadline_s
            time.sleep(0.01)


def test_a_disk_without_locks_is_decided_by_the_beat(
    lock: DriverLock, beating: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_locks(monkeypatch)
    with pytest.raises(RunDirError, match="pid 4711 on node7"), lock.hold(print):
        pass


def test_of_two_on_a_disk_without_locks_one_is_left(
    lock: DriverLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_locks(monkeypatch)
    outcomes: list[str] = []
    start, refused = threading.Barrier(2), threading.Event()

    def drive() -> None:
        start.wait()
        try:
            with DriverLock(lock.path).hold(lambda _: None):
                outcomes.append("held")
                assert refused.wait(20)
        except RunDirError:
            outcomes.append("refused")
            refused.set()

    threads = [threading.Thread(target=drive) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["held", "refused"]
