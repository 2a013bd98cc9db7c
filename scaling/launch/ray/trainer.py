"""Ray Train launches the workers and starts them again when they fail."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from scaling.channel.base import Channel
from scaling.channel.messages import ControllerLost, Lost, Message, Remark
from scaling.config.run_config import ClusterConfig
from scaling.errors import LaunchError
from scaling.launch.base import WorkerFn, WorkerKind, guarded
from scaling.launch.ray.channel import KvChannel, KvInbox
from scaling.launch.ray.cluster import RayCluster, lost_error
from scaling.launch.ray.private import missing
from scaling.launch.ray.tempdir import remove_tree
from scaling.parallel.grid import Ranks
from scaling.runs.startup import mark
from scaling.units import counted

_HELPERS = 2
"""Ray Train's controller and its actor for synchronisation. They take no CPU, but so many processes
more are started ahead."""
_SHUTDOWN_S = 30.0
"""Longest wait for Ray to end: assumption."""
_RENDEZVOUS = "SCALING_RENDEZVOUS"


def _loss_reporter(prefix: str) -> Any:
    """Ray Train's callback, in its controller: a group has ended, and these ranks without an error
    of their own."""
    from ray.exceptions import RayActorError
    from ray.train import UserCallback

    class LossReporter(UserCallback):
        def after_exception(
            self, run_context: Any, worker_exceptions: dict[int, Exception]
        ) -> None:
            causes = {
                rank: getattr(error, "health_check_failure", error)
                for rank, error in worker_exceptions.items()
            }
            lost = sorted(
                rank for rank, cause in causes.items() if isinstance(cause, RayActorError)
            )
            KvChannel(prefix, 0).send(Lost(lost))

    return LossReporter()


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    """Ray Train's train function, on each rank."""
    import ray.train

    context = ray.train.get_context()
    ranks = Ranks(context.get_world_rank(), context.get_world_size(), context.get_local_rank())
    channel: Channel = KvChannel(
        config["prefix"], ranks.rank, watches_machines=config["watches_machines"]
    )
    return guarded(config["worker_fn"], config["spec"], ranks, channel, os.environ[_RENDEZVOUS])


def _set_environment(variables: dict[str, str]) -> None:
    os.environ.update(variables)


def _make_backend(rendezvous_dir: str | None) -> Any:
    """How the ranks of one start find each other: a file on a single machine, else rank 0's address
    and a free port.

    Ray's TorchConfig would do the second, but imports torch into driver and controller (2 s
    measured) and listens on every interface.
    """
    from ray.train._internal.utils import get_address_and_port
    from ray.train.backend import Backend, BackendConfig

    class Rendezvous(Backend):
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            if backend_config.directory is not None:
                variables = {
                    _RENDEZVOUS: f"file://{backend_config.directory}/rendezvous-{uuid.uuid4().hex}"
                }
            else:
                address, port = worker_group.execute_single(0, get_address_and_port)
                variables = {
                    "MASTER_ADDR": address,
                    "MASTER_PORT": str(port),
                    _RENDEZVOUS: f"tcp://{address}:{port}",
                }
            worker_group.execute(_set_environment, variables)

    @dataclass
    class RendezvousConfig(BackendConfig):
        directory: str | None = None

        @property
        def backend_cls(self) -> type[Backend]:
            return Rendezvous

    return RendezvousConfig(directory=rendezvous_dir)


class RayLaunch:
    """Workers of one run under Ray Train, on a cluster started here for it or on one that
    stands."""

    worker_kind: WorkerKind = "restarted"

    def __init__(
        self,
        worker_fn: WorkerFn,
        spec: dict[str, Any],
        cluster: ClusterConfig,
        sizes: Sequence[int],
        *,
        debug: bool = False,
    ) -> None:
        """sizes: the numbers of workers with which the run can be, ascending; several where it is
        elastic."""
        self._prefix = f"scaling/{uuid.uuid4().hex}"
        self._inbox = KvInbox(self._prefix)
        self._spec = spec
        watched = cluster.kind == "existing"
        self._train_config = {
            "worker_fn": worker_fn,
            "spec": spec,
            "prefix": self._prefix,
            "watches_machines": watched,
        }
        self._cluster = cluster
        self._sizes = sizes
        self._ray = RayCluster(cluster, sizes[-1], helpers=_HELPERS, debug=debug)
        self._storage = Path(spec["run_dir"]) / ".ray"
        self._connected = threading.Event()
        self._result: dict[str, Any] | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="ray", daemon=True)
        self._stop_wanted = False
        self._own_messages: list[Message] = []
        self._over = threading.Event()
        self._release = threading.Event()
        self._lost: str | None = None

    def __enter__(self) -> RayLaunch:
        self._thread.start()
        return self

    def _run(self) -> None:
        """The life of the cluster. One thread from start to shutdown: Ray's servers die with the
        thread that started them."""
        try:
            self._ray.set_environment()
            imports = threading.Thread(target=_import_ray_train, daemon=True)
            imports.start()
            self._ray.connect()
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
        self._ray.shutdown()
        remove_tree(self._storage)

    def _fit(self) -> dict[str, Any]:
        """Train to the end, under another controller where one dies: its workers end with it."""
        from ray.exceptions import RayActorError

        n_lost = 0
        while True:
            try:
                result = self._trainer().fit()
            except RayActorError:
                n_lost += 1
                # this thread may learn of it before `done` does
                self._lost = self._lost or self._ray.lost_process()
                if n_lost > self._cluster.max_failures or self._lost:
                    raise
                self._own_messages.append(ControllerLost())
                self._ray.free_reservations()
            else:
                assert result.return_value is not None
                return result.return_value

    def _warn(self, text: str) -> None:
        self._own_messages.append(Remark(text))

    def _trainer(self) -> Any:
        from ray.train import FailureConfig, RunConfig, ScalingConfig

        cluster, sizes = self._cluster, self._sizes
        gpu = cluster.device.kind == "gpu"
        resources = {"GPU": 1.0, "CPU": 1.0} if gpu else {"CPU": float(cluster.threads_per_worker)}
        # of Ray Train's second version, which has more fields than the first that types know
        failure_config: Any = FailureConfig
        n_workers: Any = sizes[-1] if len(sizes) == 1 else (sizes[0], sizes[-1])
        return _trainer_class(self._ray.embedded, sizes, self._warn)(
            _worker,
            train_loop_config=self._train_config,
            backend_config=_make_backend(str(self._ray.session) if self._ray.session else None),
            scaling_config=ScalingConfig(
                num_workers=n_workers, use_gpu=gpu, resources_per_worker=resources
            ),
            run_config=RunConfig(
                # A fresh name each time: our manifests are the truth about checkpoints, Ray's
                # snapshot is none of them.
                name=uuid.uuid4().hex,
                storage_path=str(self._storage),
                failure_config=failure_config(
                    max_failures=cluster.max_failures,
                    max_preemption_failures=cluster.max_preemptions,
                ),
                callbacks=[_loss_reporter(self._prefix)],
            ),
        )

    def receive(self) -> list[Message]:
        if not self._connected.is_set() or self._lost:
            return []
        if self._stop_wanted:
            self._inbox.request_stop()
        own, self._own_messages = self._own_messages, []
        return own + self._inbox.receive()

    def request_stop(self) -> None:
        self._stop_wanted = True

    def done(self, timeout_s: float) -> bool:
        over = self._over.wait(timeout_s)
        if not over:
            self._lost = self._lost or self._ray.lost_process()
        return over or self._lost is not None

    def result(self) -> dict[str, Any]:
        if self._lost:
            raise lost_error(self._lost)
        if isinstance(self._error, LaunchError):
            raise self._error
        if self._result is None:
            raise LaunchError(_reason(self._error)) from self._error
        return self._result

    def __exit__(self, *exc: object) -> None:
        if self._lost:  # the thread may wait for an answer that will not come
            self._ray.abandon()
            remove_tree(self._storage)
            return
        self._release.set()
        self._thread.join(_SHUTDOWN_S)


def _import_ray_train() -> None:
    import ray.train.v2.api.data_parallel_trainer  # noqa: F401


def _trainer_class(
    embedded: bool, sizes: Sequence[int], warn: Callable[[str], None]
) -> Callable[..., Any]:
    """Ray Train's trainer, or ours made of its private parts. Raises LaunchError where an elastic
    run lacks one."""
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    if embedded:
        lacking = missing("embedded")
        if not lacking:
            from scaling.launch.ray.embedded import EmbeddedTrainer

            return EmbeddedTrainer
        warn(f"This Ray lacks {', '.join(lacking)}: its public trainer is used, and starts slower.")
    elif len(sizes) > 1:
        if lacking := missing("elastic"):
            raise LaunchError(
                f"an elastic run needs {', '.join(lacking)}, which this Ray lacks",
                f"{sizes[0]} to {sizes[-1]} workers",
                "Install the version of constraints.txt, or fix the number of devices.",
            )
        from scaling.launch.ray.elastic import ElasticTrainer

        return partial(ElasticTrainer, sizes=sizes)
    return DataParallelTrainer


def _reason(error: BaseException | None) -> str:
    """The workers' own error, of the lowest rank that has one, without Ray's wrapping."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        rank = min(failures)
        return (
            f"{counted(len(failures), 'worker')} failed; rank {rank}: "
            f"{str(failures[rank]).strip().splitlines()[-1]}"
        )
    return f"the workers could not be started or kept running: {error}"
