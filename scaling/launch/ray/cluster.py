"""A connection to Ray: to a cluster that is started here and ends with us, or to one that
stands."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import sys
import time
from pathlib import Path
from typing import Any

from scaling.config.run_config import ClusterConfig
from scaling.errors import LaunchError
from scaling.launch.ray.tempdir import end_processes, remove_tree, session_directory

_ENVIRONMENT = {
    # No reports to the vendor, no dashboards, no print patching. The controller looks at its
    # workers every 0.3 s instead of every 2 s, so that an end or an error is seen at once.
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Machines that have just gone are counted for a while: the wait for them (60 s) is a restart's,
    # where others are left.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_EMBEDDED_ENVIRONMENT = {
    # What the controller would otherwise be sent by Ray Train, in an environment of its own.
    "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",
    # Processes are started ahead with the cluster, as many as its CPUs, and none later on a guess.
    "RAY_enable_worker_prestart": "0",
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "lo",
    # The name is historical: 0 makes the node's address the loopback one, and every service listen
    # there only.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
_TOKEN = secrets.token_hex(32)
"""What processes of this driver's embedded clusters show to one another; it is in their
environments alone, never on a disk."""
_OBJECT_STORE_BYTES = 80 * 2**20
"""Nothing large passes through Ray, and /dev/shm may be small: 80 MiB was measured to suffice."""
_VITAL = ("raylet", "gcs_server")
"""Ray's process on a machine, and that of its head."""
_ATTEMPTS = 2
"""Attempts to start. A busy machine may take longer than the 30 s that Ray gives itself, and then
find everything in its caches."""
_CONNECT_S = 10.0
"""Longest wait for the head of a standing cluster to answer: assumption."""


def lost_error(process: str) -> LaunchError:
    """The error to raise where a process of Ray's own has ended."""
    return LaunchError(
        f"Ray's own process {process} ended on this machine: killed, or out of memory",
        fix="The same command resumes from the last checkpoint.",
    )


class RayCluster:
    """Ray for `n_workers` workers. The thread that connects must live until the shutdown: Ray's
    servers die with it.

    helpers: actors beside the workers, which take no CPU, but for each of which a process is
    started ahead.
    """

    def __init__(
        self, cluster: ClusterConfig, n_workers: int, *, helpers: int = 0, debug: bool = False
    ) -> None:
        self._cluster, self._n_workers, self._helpers, self._debug = (
            cluster,
            n_workers,
            helpers,
            debug,
        )
        self.embedded = cluster.kind == "embedded"
        self.session: Path | None = session_directory() if self.embedded else None
        self._seen: dict[int, str] | None = {}

    def set_environment(self) -> None:
        """Ray reads these when it is imported."""
        os.environ.update(_ENVIRONMENT)
        if self.embedded:
            os.environ.update(_EMBEDDED_ENVIRONMENT, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=_TOKEN)
            os.environ.pop("RAY_AUTH_TOKEN_PATH", None)
        elif _has_token():
            os.environ.setdefault("RAY_AUTH_MODE", "token")

    def connect(self) -> None:
        """Start the cluster, or join the one that stands. Raises LaunchError when neither comes
        about in _ATTEMPTS attempts."""
        for attempt in range(1, _ATTEMPTS + 1):
            begun_s = time.monotonic()
            try:
                self._connect()
                return
            except LaunchError:
                raise
            except Exception as error:  # Ray raises bare ones, too
                self._undo()
                if attempt == _ATTEMPTS:
                    raise self._failure(error, time.monotonic() - begun_s) from error

    def _connect(self) -> None:
        import ray

        logging.getLogger("ray").setLevel(logging.WARNING if self._debug else logging.CRITICAL)
        options: dict[str, Any] = {
            "log_to_driver": self._debug,
            "logging_level": "warning" if self._debug else "critical",
        }
        if not self.embedded:
            address = self._cluster.address or "auto"
            _require_answer(address)
            ray.init(address=address, **options)
            return
        cpus = self._n_workers * self._cluster.threads_per_worker
        ray.init(
            address="local",
            num_cpus=cpus + self._helpers,
            num_gpus=self._n_workers if self._cluster.device.kind == "gpu" else 0,
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            _temp_dir=str(self.session),
            **options,
        )

    def _undo(self) -> None:
        """Take away what an attempt has begun, so that another finds nothing of it."""
        import ray

        self._seen = None
        with contextlib.suppress(Exception):
            ray.shutdown()
        if self.session is not None:
            end_processes(self.session)
            remove_tree(self.session)
            self.session = session_directory()
        self._seen = {}

    def _failure(self, error: Exception, took_s: float) -> LaunchError:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        where = f"attempt {_ATTEMPTS} of {_ATTEMPTS}, after {took_s:.0f} s"
        if self.session is None:
            address = self._cluster.address or "this machine (cluster.address=auto)"
            return LaunchError(
                f"the Ray cluster at {address} cannot be joined: {reason}",
                where,
                "See that it stands (ray status), that its Ray is the version here, and that "
                "both have the same "
                "RAY_AUTH_TOKEN or none; cluster/README.md starts one.",
            )
        remove_tree(self.session)
        return LaunchError(
            f"Ray did not start on this machine: {reason}",
            where,
            "It may be busy, or short of memory or of space in /tmp: try again, or with fewer "
            "workers "
            "(cluster.devices_per_node=1 needs no Ray). scaling.debug=true shows Ray's own words.",
        )

    def free_reservations(self) -> None:
        """Take back what a controller that died had reserved for its workers, on a cluster that is
        ours alone.

        Elsewhere an actor of Ray Train's does so, which this cluster is started without.
        """
        from ray import PlacementGroupID
        from ray.util import placement_group_table, remove_placement_group
        from ray.util.placement_group import PlacementGroup

        if self.embedded:
            for name in placement_group_table():
                remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(name))))

    def lost_process(self) -> str | None:
        """A process of Ray's own that has died, of a cluster started here: nothing can be started
        on it any more.

        Ray ends the driver for it, some seconds later and without a message of ours.
        """
        if not self.embedded:
            return None
        node = _own_node()
        if node is None:
            return self._lost_in_the_start()
        dead = [kind for kind, _ in node.dead_processes()]
        return next((kind for kind in _VITAL if kind in dead), None)

    def _lost_in_the_start(self) -> str | None:
        """`lost_process` before Ray has a record of its processes: it waits a minute for a store
        that has died."""
        seen = self._seen
        if seen is None:  # an attempt is being undone, by the thread that connects
            return None
        seen |= _vital_children()
        return next((kind for pid, kind in seen.items() if not _lives(pid)), None)

    def abandon(self) -> None:
        """Take away what is left of a cluster that has lost a process."""
        node = _own_node()
        if node is not None:
            node.kill_all_processes(check_alive=False, allow_graceful=False)
        if self.session is not None:
            end_processes(self.session)
            remove_tree(self.session)

    def shutdown(self) -> None:
        import ray

        ray.shutdown()
        if self.session is not None:
            remove_tree(self.session)


def _vital_children() -> dict[int, str]:
    """Ray's servers among the children of this process, whichever thread started them: pid -> kind.

    The kernel may leave one out while another ends (proc_pid_task_children(5)), so that one is
    missing here says nothing; `_lives` does.
    """
    found = {}
    for children in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for pid in map(int, children.read_text().split()):
                kind = Path(f"/proc/{pid}/comm").read_text().strip()
                if kind in _VITAL:
                    found[pid] = kind
    return found


def _lives(pid: int) -> bool:
    """Whether a child of this process runs: it is there, and no zombie (proc_pid_stat(5))."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return fields[0] not in "ZX" and int(fields[1]) == os.getpid()


def _own_node() -> Any:
    """Ray's own record of the processes that it has started here; None before another thread has
    imported Ray."""
    return getattr(sys.modules.get("ray._private.worker"), "_global_node", None)


def _require_answer(address: str) -> None:
    """Raise LaunchError unless something listens at HOST:PORT; Ray itself would wait for it without
    end."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except OSError as error:
        raise LaunchError(
            f"no Ray cluster answers at {address}: {error}",
            "cluster.address",
            "Start it (see cluster/README.md), or mend the address.",
        ) from error


def _has_token() -> bool:
    """Whether there is a token to show to a cluster; Ray sends it to one that stands only when
    asked to."""
    given = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    return bool(given) or (Path.home() / ".ray" / "auth_token").exists()
