"""What the driver makes of Ray: what it tells Ray Train, and what it does where a process of Ray's
own dies."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError

from scaling.errors import LaunchError
from scaling.launch.ray.cluster import RayCluster
from scaling.launch.ray.connection import Connection
from scaling.launch.ray.elastic import ElasticTrainer
from scaling.launch.ray.group import GroupLaunch
from scaling.launch.ray.pool import Slot, WorkerPool
from scaling.launch.ray.trainer import RayLaunch
from scaling.planner.world_sizes import elastic_sizes
from tests.support.configs import composed

STANDING = (
    "cluster=existing",
    "cluster.device.kind=cpu",
    "cluster.device.name=core",
    "cluster.device.memory_gb=12",
    "cluster.n_nodes=4",
    "cluster.devices_per_node=1",
)


def test_ray_train_is_told_what_a_run_may_survive(tmp_path: Path) -> None:
    config = composed(
        *STANDING, "cluster.preemptible=true", "cluster.max_failures=7", "cluster.max_preemptions=9"
    )
    launch = RayLaunch(
        lambda *_: {}, {"run_dir": str(tmp_path)}, config.cluster, elastic_sizes(config)
    )
    trainer = launch._trainer()
    failures = trainer.run_config.failure_config
    assert isinstance(trainer, ElasticTrainer)
    assert (failures.max_failures, failures.max_preemption_failures) == (7, 9)
    assert trainer.scaling_config.num_workers == (1, 4)


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Ray's own, of this driver: `dead` of them, and `killed` all."""
    from ray._private import worker

    found: dict[str, Any] = {"dead": [], "killed": False}
    node = SimpleNamespace(
        dead_processes=lambda: [(kind, None) for kind in found["dead"]],
        kill_all_processes=lambda **_: found.update(killed=True),
    )
    monkeypatch.setattr(worker, "_global_node", node)
    return found


def test_a_run_whose_ray_died_ends_with_a_word(tmp_path: Path, processes: dict[str, Any]) -> None:
    launch = RayLaunch(lambda *_: {}, {"run_dir": str(tmp_path)}, composed().cluster, (2,))
    launch._connected.set()
    processes["dead"] = ["log_monitor"]
    assert not launch.done(0), "nothing is lost without it"
    processes["dead"] = ["log_monitor", "raylet"]
    assert launch.done(0)
    assert launch.receive() == [], "the store in which they tell may be what died"
    with pytest.raises(LaunchError, match="raylet ended on this machine") as caught:
        launch.result()
    assert "The same command resumes" in str(caught.value)
    launch.__exit__()
    assert processes["killed"]
    assert launch._ray.session is not None
    assert not launch._ray.session.exists()


def test_the_word_comes_as_well_where_training_ends_before_it_is_asked(
    tmp_path: Path, processes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Train's controller dies with the raylet, and the thread that waits for it may see that
    first."""
    launch = RayLaunch(lambda *_: {}, {"run_dir": str(tmp_path)}, composed().cluster, (2,))

    def dead() -> Any:
        raise RayActorError

    monkeypatch.setattr(launch, "_trainer", lambda: SimpleNamespace(fit=dead))
    processes["dead"] = ["raylet"]
    with pytest.raises(RayActorError) as caught:
        launch._fit()
    launch._error = caught.value
    launch._over.set()
    assert launch.done(0)
    with pytest.raises(LaunchError, match="raylet ended on this machine"):
        launch.result()


def test_a_standing_clusters_processes_are_its_own_matter(processes: dict[str, Any]) -> None:
    processes["dead"] = ["raylet"]
    assert RayCluster(composed(*STANDING).cluster, 4).lost_process() is None


# Studies and searches


class Ray(RayCluster):
    """A cluster of one machine that starts nothing. lost: its process that has ended."""

    def __init__(self) -> None:
        super().__init__(composed().cluster, 2)
        self.lost: str | None = None
        self.answers, self.calls = threading.Event(), list[str]()

    def set_environment(self) -> None: ...

    def connect(self) -> None:
        self.calls.append("connect")
        assert self.answers.wait(30)

    def lost_process(self) -> str | None:
        return self.lost

    def shutdown(self) -> None:
        self.calls.append("shutdown")

    def abandon(self) -> None:
        self.calls.append("abandon")
        self.answers.set()


def test_a_process_lost_in_the_start_is_no_long_wait() -> None:
    ray = Ray()
    ray.lost = "gcs_server"
    with pytest.raises(LaunchError, match="gcs_server ended"), Connection(ray):
        pass
    assert ray.calls == ["connect", "abandon"]


@pytest.mark.parametrize("lost", [None, "gcs_server"])
def test_what_is_watched_ends_with_ray(lost: str | None) -> None:
    ray, at_work, forever = Ray(), threading.Event(), threading.Event()
    ray.answers.set()

    def act() -> str:
        at_work.set()
        ray.lost = lost
        assert lost is None or forever.wait(30)
        return "done"

    if lost is None:
        with Connection(ray) as connection:
            assert connection.watch(act, lambda: None) == "done"
        assert ray.calls == ["connect", "shutdown"]
    else:
        with pytest.raises(LaunchError, match="gcs_server ended"), Connection(ray) as connection:
            connection.watch(act, lambda: None)
        assert ray.calls == ["connect", "abandon"]
        forever.set()
    assert at_work.is_set()


def test_an_error_of_what_is_watched_is_raised() -> None:
    ray = Ray()
    ray.answers.set()

    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), Connection(ray) as connection:
        connection.watch(fail, lambda: None)
    assert ray.calls == ["connect", "shutdown"]


def test_trials_end_with_ray_and_ask_it_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = WorkerPool(composed().cluster, 2)
    ray = Ray()
    monkeypatch.setattr(pool._connection, "_cluster", ray)
    ended: list[bool] = []
    launch = GroupLaunch(lambda *_: {}, {}, [], [], "", ended.append, pool._connection.check)
    monkeypatch.setattr(launch, "_inbox", None)
    ray.lost = "gcs_server"
    assert launch.done(0)
    assert ray.calls == ["abandon"], "no worker writes to a run after its end"
    assert ended == [False]
    assert launch.receive() == []
    launch.request_stop()
    with pytest.raises(LaunchError, match="gcs_server ended"):
        launch.result()
    with pytest.raises(LaunchError, match="gcs_server ended"):
        pool.poll()
    pool._give_back([Slot(None, None, busy=True)], as_new=False)
    pool.__exit__(None, None, None)
    assert ray.calls == ["abandon"]
