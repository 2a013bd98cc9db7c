"""A Ray that does not start, or cannot be joined: once more, and then what to do. Ray itself is
imitated."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scaling.composition.compose import compose
from scaling.config.run_config import ClusterConfig
from scaling.errors import LaunchError
from scaling.launch.ray.cluster import RayCluster

SLOW = Exception("The current node timed out during startup. This could happen because ...\nmore")


class FakeRay(SimpleNamespace):
    """Fails as often as it is told. `sessions`: the directories that it was started in."""

    def __init__(self, failures: list[BaseException]) -> None:
        super().__init__(failures=failures, sessions=[], n_shutdowns=0)

    def init(self, **options: Any) -> None:
        directory = options.get("_temp_dir")
        self.sessions.append(directory)
        if self.failures:
            raise self.failures.pop(0)

    def shutdown(self) -> None:
        self.n_shutdowns += 1


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """(cluster, failures) -> the imitation, connected to; sessions lie in tmp_path."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def start(cluster: ClusterConfig, *failures: BaseException) -> tuple[FakeRay, RayCluster]:
        ray = FakeRay(list(failures))
        monkeypatch.setitem(sys.modules, "ray", ray)
        connected = RayCluster(cluster, 2)
        connected.connect()
        return ray, connected

    return start


def local() -> ClusterConfig:
    return compose(["cluster.devices_per_node=2"]).cluster


def existing(address: str) -> ClusterConfig:
    return compose(
        ["cluster=existing", f"cluster.address={address}", "cluster.devices_per_node=2"]
    ).cluster


def test_a_slow_start_is_tried_once_more_in_a_directory_of_its_own(
    started: Any, tmp_path: Path
) -> None:
    ray, cluster = started(local(), SLOW)
    first, second = ray.sessions
    assert first != second == str(cluster.session)
    assert not Path(first).exists()
    assert Path(second).is_dir()
    assert ray.n_shutdowns == 1


def test_two_failures_are_one_clear_error_and_leave_nothing(started: Any, tmp_path: Path) -> None:
    with pytest.raises(LaunchError) as caught:
        started(local(), SLOW, ConnectionError("gcs"))
    assert str(caught.value) == (
        "Ray did not start on this machine: gcs (attempt 2 of 2, after 0 s).\n  It may be busy, "
        "or short of memory or of space "
        "in /tmp: try again, or with fewer workers (cluster.devices_per_node=1 needs no Ray). "
        "scaling.debug=true shows Ray's own "
        "words."
    )
    assert list(tmp_path.iterdir()) == []


def test_a_cluster_that_cannot_be_joined_is_named(started: Any) -> None:
    with pytest.raises(
        LaunchError, match=r"the Ray cluster at ray.local cannot be joined: version mismatch"
    ) as caught:
        started(
            existing("ray.local"),
            RuntimeError("version mismatch"),
            RuntimeError("version mismatch"),
        )
    assert "ray status" in (caught.value.fix or "")


def test_an_interruption_is_not_tried_again(started: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        started(local(), KeyboardInterrupt())


def test_what_the_first_attempt_has_started_is_ended(
    started: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[subprocess.Popen[bytes]] = []
    init = FakeRay.init

    def start_and_fail(self: FakeRay, **options: Any) -> None:
        if not left:
            code = "import time; time.sleep(60)"
            left.append(
                subprocess.Popen(
                    [sys.executable, "-S", "-c", code, f"--session_dir={options['_temp_dir']}"]
                )
            )
        init(self, **options)

    monkeypatch.setattr(FakeRay, "init", start_and_fail)
    started(local(), SLOW)
    assert left[0].wait(30) == -9
