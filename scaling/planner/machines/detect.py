"""This machine: its GPUs, cores and memory, for what a cluster's configuration leaves open."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaling.config.hardware import known_gpu
from scaling.config.run_config import ClusterConfig, DeviceConfig, RunConfig
from scaling.errors import ConfigError

THIS_MACHINE = "this machine"
"""`device.name` of a device that is asked of the machine
(conf/cluster/device/this_machine.yaml)."""

MAX_CPU_WORKERS = 2
"""Enough to run every collective; more gain little on few cores. A choice: cluster.devices_per_node
overrides it."""


@dataclass(frozen=True)
class Gpu:
    """Name and memory of a GPU, as the driver reports them."""

    name: str
    memory_bytes: int


def resolve_cluster(config: RunConfig) -> RunConfig:
    """Fill what is null for this machine's devices; a value that is set wins. A described cluster
    comes back as it is.

    Raises ConfigError when the cluster is not this machine and is not described.
    """
    cluster = config.cluster
    if cluster.device.name != THIS_MACHINE:
        _require_described(cluster)
        return config
    if cluster.kind == "existing":
        raise ConfigError(
            f"cluster={cluster.name} joins machines that the planner cannot ask what they are "
            "made of",
            "cluster.device",
            "Say it, for example: cluster/device=H100-80GB cluster.n_nodes=4 "
            "cluster.devices_per_node=8.",
        )
    gpus = visible_gpus()
    resolved = _with_gpus(cluster, gpus) if gpus else _with_cpus(cluster)
    return config.model_copy(update={"cluster": resolved})


def n_devices(config: RunConfig) -> int:
    """Devices of the whole cluster; `resolve_cluster` comes first."""
    cluster = config.cluster
    assert cluster.devices_per_node is not None, "resolve_cluster(config) comes first"
    return cluster.n_nodes * cluster.devices_per_node


def check_available(config: RunConfig) -> None:
    """Refuse to start a cluster here that this machine is not. For the moment before launch, never
    for a dry run.

    CPU workers are processes: more of them than cores are slow but no mistake, so only their
    machine count is checked. Raises ConfigError.
    """
    cluster = config.cluster
    if cluster.kind == "existing":
        return
    gpus = visible_gpus()
    same = cluster.n_nodes == 1 and (
        cluster.device.kind == "cpu"
        or (n_devices(config) <= len(gpus) and _device_name(gpus[0]) == cluster.device.name)
    )
    if same:
        return
    wanted = f"{n_devices(config)} x {cluster.device.name}"
    if cluster.n_nodes > 1:
        wanted += f" in {cluster.n_nodes} machines"
    raise ConfigError(
        f"cluster={cluster.name} wants {wanted}, this machine has {_inventory(gpus)}",
        "cluster.kind=embedded starts the workers here",
        "dry_run=true prints the plan; cluster=local uses this machine; "
        "cluster=existing cluster.address=HOST:6379 joins a running Ray cluster.",
    )


def visible_gpus() -> list[Gpu]:
    """GPUs that CUDA would use, in its order, after CUDA_VISIBLE_DEVICES; none where there is no
    NVIDIA driver.

    Raises ConfigError when there is a driver that does not answer.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and not visible.strip():
        return []
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
        return []
    except pynvml.NVMLError as error:
        raise ConfigError(
            f"The NVIDIA driver of this machine does not answer: {error}",
            "cluster=local",
            "Mend it (nvidia-smi says more), or set CUDA_VISIBLE_DEVICES= to run on the CPU.",
        ) from error
    try:
        return [_ask(pynvml, handle) for handle in _handles(pynvml, visible)]
    finally:
        pynvml.nvmlShutdown()


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_limit_bytes(root: Path = Path("/")) -> int:
    """Memory that processes here may use: the machine's, or less where a control group (version 1
    or 2) limits it."""
    meminfo = root / "proc/meminfo"
    if not meminfo.exists():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    installed = int(fields["MemTotal"].split()[0]) * 1024
    return min([installed, *_cgroup_limits(root)])


def _cgroup_limits(root: Path) -> Iterator[int]:
    """Limits of this process's memory groups and of the groups around them, in bytes."""
    membership = root / "proc/self/cgroup"
    for line in membership.read_text().splitlines() if membership.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            base, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        folder = base / path.lstrip("/")
        for group in (folder, *folder.parents):
            if group.is_relative_to(base) and (group / name).exists():
                text = (group / name).read_text().strip()
                if text.isdigit():  # "max" is no limit
                    yield int(text)


def _handles(pynvml: Any, visible: str | None) -> list[Any]:
    """One driver handle per GPU in CUDA_VISIBLE_DEVICES, which holds indices or UUIDs."""
    n_gpus = pynvml.nvmlDeviceGetCount()
    if visible is None:
        return [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(n_gpus)]
    handles = []
    for name in (part.strip() for part in visible.split(",")):
        if name.isdigit() and int(name) < n_gpus:
            handles.append(pynvml.nvmlDeviceGetHandleByIndex(int(name)))
        elif name.startswith(("GPU-", "MIG-")):
            handles.append(pynvml.nvmlDeviceGetHandleByUUID(name))
        else:
            break  # as CUDA does: nothing from the first unknown one on
    return handles


def _ask(pynvml: Any, handle: Any) -> Gpu:
    name = pynvml.nvmlDeviceGetName(handle)
    name = name.decode() if isinstance(name, bytes) else name
    return Gpu(name, int(pynvml.nvmlDeviceGetMemoryInfo(handle).total))


def _with_gpus(cluster: ClusterConfig, gpus: list[Gpu]) -> ClusterConfig:
    names = sorted({gpu.name for gpu in gpus})
    if len(names) > 1:
        raise ConfigError(
            f"This machine has GPUs of different kinds: {', '.join(names)}",
            f"cluster={cluster.name}",
            "Choose those of one kind with CUDA_VISIBLE_DEVICES=0,1,...",
        )
    known = known_gpu(gpus[0].name)
    memory_gb = min(gpu.memory_bytes for gpu in gpus) / 1e9
    sheet = known.device if known else {"kind": "gpu", "name": gpus[0].name}
    return _filled(
        cluster,
        len(gpus),
        sheet | {"memory_gb": memory_gb},
        known.nvlink_gb_per_s if known else None,
    )


def _with_cpus(cluster: ClusterConfig) -> ClusterConfig:
    n_workers = cluster.devices_per_node or min(MAX_CPU_WORKERS, usable_cores())
    device = {
        "kind": "cpu",
        "name": _cpu_name(),
        "memory_gb": memory_limit_bytes() / n_workers / 1e9,
    }
    return _filled(cluster, n_workers, device, None)


def _filled(
    cluster: ClusterConfig, n_found: int, found: dict[str, Any], link_gb_per_s: float | None
) -> ClusterConfig:
    """`cluster` with what was found in the place of null values."""
    given = cluster.device.model_dump(exclude={"kind", "name"}, exclude_none=True)
    return cluster.model_copy(
        update={
            "device": DeviceConfig.model_validate(found | given),
            "devices_per_node": cluster.devices_per_node or n_found,
            "intra_node_gb_per_s": cluster.intra_node_gb_per_s or link_gb_per_s,
        }
    )


def _require_described(cluster: ClusterConfig) -> None:
    for key, value in (
        ("device.memory_gb", cluster.device.memory_gb),
        ("devices_per_node", cluster.devices_per_node),
    ):
        if value is None:
            raise ConfigError(
                f"cluster.{key} is null, and {cluster.device.name} is not asked of this machine",
                f"cluster={cluster.name}",
                f"Set cluster.{key}, or use cluster=local for this machine.",
            )


def _device_name(gpu: Gpu) -> str:
    known = known_gpu(gpu.name)
    return str(known.device["name"]) if known else gpu.name


def _inventory(gpus: list[Gpu]) -> str:
    if gpus:
        return f"{len(gpus)} x {_device_name(gpus[0])}"
    n_workers = min(MAX_CPU_WORKERS, usable_cores())
    return f"{n_workers} CPU worker{'s' if n_workers > 1 else ''} (no NVIDIA GPU)"


def _cpu_name(root: Path = Path("/")) -> str:
    cpuinfo = root / "proc/cpuinfo"
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return value.strip()
    return "CPU"
