"""Ray Train launches the workers and starts them again when they fail. Ray is imported here and in embedded.py alone."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaling.channel import Channel
from scaling.config import ClusterConfig
from scaling.errors import LaunchError
from scaling.launch.base import WorkerFn, guarded
from scaling.launch.tempdir import remove_tree, session_directory
from scaling.parallel.grid import Ranks
from scaling.startup import mark

_ENVIRONMENT = {
    # No reports to the vendor, no dashboards, no print patching. The controller looks at its workers every 0.3 s instead
    # of every 2 s, so that an end or an error is seen at once.
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_EMBEDDED_ENVIRONMENT = {
    # What the controller would otherwise be sent by Ray Train, in an environment of its own.
    "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",
    # Processes are started ahead with the cluster, as many as its CPUs, and none later on a guess.
    "RAY_enable_worker_prestart": "0",
    "GLOO_SOCKET_IFNAME": "lo",
    # The name is historical: 0 makes the node's address the loopback one, and every service listen there only.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
_OBJECT_STORE_BYTES = 80 * 2**20
"""Nothing large passes through Ray, and /dev/shm may be small: 80 MiB was measured to suffice."""
_HELPERS = 2
"""Ray Train's controller and its actor for synchronisation. They take no CPU, but so many processes more are started ahead."""
_CONNECT_S = 10.0
_SHUTDOWN_S = 30.0
"""Assumptions: longest waits for the head of a standing cluster to answer, and for Ray to end."""
_RENDEZVOUS = "SCALING_RENDEZVOUS"


class KvChannel:
    """A worker's end of the channel, through the key-value store of Ray's head. `prefix` is the launch's own."""

    def __init__(self, prefix: str, rank: int) -> None:
        self._prefix = prefix
        self._rank = rank

    def send(self, kind: str, message: dict[str, Any]) -> None:
        from ray.experimental.internal_kv import _internal_kv_put

        name = "progress" if kind == "progress" else f"message/{time.time_ns():020d}-{self._rank}"
        _internal_kv_put(f"{self._prefix}/{name}", json.dumps([kind, message]).encode(), overwrite=True)

    def stop_requested(self) -> bool:
        from ray.experimental.internal_kv import _internal_kv_exists

        return bool(_internal_kv_exists(f"{self._prefix}/stop"))

    def abandon(self) -> None:
        os._exit(1)


def _loss_teller(prefix: str) -> Any:
    """Ray Train's callback, in its controller, that tells the driver which ranks ended without an error of their own."""
    from ray.exceptions import RayActorError
    from ray.train import UserCallback

    class LossTeller(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            causes = {rank: getattr(error, "health_check_failure", error) for rank, error in worker_exceptions.items()}
            lost = sorted(rank for rank, cause in causes.items() if isinstance(cause, RayActorError))
            if lost:
                KvChannel(prefix, lost[0]).send("lost", {"ranks": lost})

    return LossTeller()


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    """Ray Train's train function, on each rank."""
    import ray.train

    context = ray.train.get_context()
    ranks = Ranks(context.get_world_rank(), context.get_world_size(), context.get_local_rank())
    channel: Channel = KvChannel(config["prefix"], ranks.rank)
    return guarded(config["worker_fn"], config["spec"], ranks, channel, os.environ[_RENDEZVOUS])


def _set_environment(variables: dict[str, str]) -> None:
    os.environ.update(variables)


def _make_backend(rendezvous_dir: str | None) -> Any:
    """How the ranks of one start find each other: a file on a single machine, else rank 0's address and a free port.

    Ray's TorchConfig would do the second, but imports torch into driver and controller (2 s measured) and listens on
    every interface.
    """
    from ray.train._internal.utils import get_address_and_port
    from ray.train.backend import Backend, BackendConfig

    class Rendezvous(Backend):
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            if backend_config.directory is not None:
                variables = {_RENDEZVOUS: f"file://{backend_config.directory}/rendezvous-{uuid.uuid4().hex}"}
            else:
                address, port = worker_group.execute_single(0, get_address_and_port)
                variables = {"MASTER_ADDR": address, "MASTER_PORT": str(port), _RENDEZVOUS: f"tcp://{address}:{port}"}
            worker_group.execute(_set_environment, variables)

    @dataclass
    class RendezvousConfig(BackendConfig):
        directory: str | None = None

        @property
        def backend_cls(self) -> type[Backend]:
            return Rendezvous

    return RendezvousConfig(directory=rendezvous_dir)


class RayLaunch:
    """Workers of one run under Ray Train, on a cluster started here for it or on one that stands."""

    dies_with_its_worker = False

    def __init__(
        self, worker_fn: WorkerFn, spec: dict[str, Any], cluster: ClusterConfig, world_size: int, *, debug: bool = False
    ) -> None:
        self._prefix = f"scaling/{uuid.uuid4().hex}"
        self._spec = spec
        self._train_config = {"worker_fn": worker_fn, "spec": spec, "prefix": self._prefix}
        self._cluster = cluster
        self._world_size = world_size
        self._debug = debug
        self._embedded = cluster.kind == "embedded"
        self._storage = Path(spec["run_dir"]) / ".ray"
        self._session = session_directory() if self._embedded else None
        self._connected = threading.Event()
        self._result: dict[str, Any] | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="ray", daemon=True)
        self._stop_wanted = False
        self._over = threading.Event()
        self._release = threading.Event()

    def __enter__(self) -> RayLaunch:
        self._thread.start()
        return self

    def _run(self) -> None:
        """The life of the cluster. One thread from start to shutdown: Ray's servers die with the thread that started them."""
        try:
            self._set_environment()
            imports = threading.Thread(target=_import_ray_train, daemon=True)
            imports.start()
            self._connect()
            imports.join()
            self._connected.set()
            mark(self._spec["startup"], "cluster_ready")
            self._result = self._fit()
        except BaseException as error:
            self._error = error
        finally:
            self._over.set()
            self._release.wait()
            self._connected.clear()
            self._shutdown()

    def _shutdown(self) -> None:
        import ray

        ray.shutdown()
        remove_tree(self._storage)
        if self._session is not None:
            remove_tree(self._session)

    def _set_environment(self) -> None:
        """Ray reads these when it is imported."""
        os.environ.update(_ENVIRONMENT)
        if self._embedded:
            os.environ.update(_EMBEDDED_ENVIRONMENT)
        elif _has_token():
            os.environ.setdefault("RAY_AUTH_MODE", "token")

    def _connect(self) -> None:
        import ray

        logging.getLogger("ray").setLevel(logging.WARNING if self._debug else logging.CRITICAL)
        options: dict[str, Any] = {"log_to_driver": self._debug, "logging_level": "warning" if self._debug else "critical"}
        if not self._embedded:
            address = self._cluster.address or "auto"
            _require_answer(address)
            ray.init(address=address, **options)
            return
        cpus = self._world_size * self._cluster.threads_per_worker
        ray.init(
            address="local",
            num_cpus=cpus + _HELPERS,
            num_gpus=self._world_size if self._cluster.device.kind == "gpu" else 0,
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            _temp_dir=str(self._session),
            **options,
        )

    def _fit(self) -> dict[str, Any]:
        from ray.train import FailureConfig, RunConfig, ScalingConfig

        gpu = self._cluster.device.kind == "gpu"
        resources = {"GPU": 1.0, "CPU": 1.0} if gpu else {"CPU": float(self._cluster.threads_per_worker)}
        trainer = _trainer_class(self._embedded)(
            _worker,
            train_loop_config=self._train_config,
            backend_config=_make_backend(str(self._session) if self._embedded else None),
            scaling_config=ScalingConfig(num_workers=self._world_size, use_gpu=gpu, resources_per_worker=resources),
            run_config=RunConfig(
                # A fresh name each time: our manifests are the truth about checkpoints, Ray's snapshot is none of them.
                name=uuid.uuid4().hex,
                storage_path=str(self._storage),
                failure_config=FailureConfig(max_failures=self._cluster.max_failures),
                callbacks=[_loss_teller(self._prefix)],
            ),
        )
        result = trainer.fit()
        assert result.return_value is not None
        return result.return_value

    def receive(self) -> list[tuple[str, dict[str, Any]]]:
        if not self._connected.is_set():
            return []
        from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_list, _internal_kv_put

        if self._stop_wanted:
            _internal_kv_put(f"{self._prefix}/stop", b"1", overwrite=True)
        messages = []
        for key in [*sorted(_internal_kv_list(f"{self._prefix}/message/")), f"{self._prefix}/progress".encode()]:
            value = _internal_kv_get(key)
            if value is not None:
                _internal_kv_del(key)
                messages.append(tuple(json.loads(value)))
        return messages

    def request_stop(self) -> None:
        self._stop_wanted = True

    def done(self, timeout_s: float) -> bool:
        return self._over.wait(timeout_s)

    def result(self) -> dict[str, Any]:
        if isinstance(self._error, LaunchError):
            raise self._error
        if self._result is None:
            raise LaunchError(_reason(self._error)) from self._error
        return self._result

    def __exit__(self, *exc: object) -> None:
        self._release.set()
        self._thread.join(_SHUTDOWN_S)


def _require_answer(address: str) -> None:
    """Raise LaunchError unless something listens at HOST:PORT; Ray itself would wait for it without end."""
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
    """Whether there is a token to show to a cluster; Ray sends it to one that stands only when asked to."""
    given = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    return bool(given) or (Path.home() / ".ray" / "auth_token").exists()


def _import_ray_train() -> None:
    import ray.train.v2.api.data_parallel_trainer  # noqa: F401


def _trainer_class(embedded: bool) -> Callable[..., Any]:
    if embedded:
        from scaling.launch.embedded import EmbeddedTrainer

        return EmbeddedTrainer
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    return DataParallelTrainer


def _reason(error: BaseException | None) -> str:
    """The workers' own words, of the lowest rank that has any, without Ray's wrapping."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        rank = min(failures)
        return f"{len(failures)} workers failed; rank {rank}: {str(failures[rank]).strip().splitlines()[-1]}"
    return f"the workers could not be started or kept running: {error}"
