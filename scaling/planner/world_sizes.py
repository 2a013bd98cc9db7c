"""Numbers of devices on which a run can continue while its cluster shrinks and grows."""

from __future__ import annotations

from scaling.config.run_config import RunConfig
from scaling.errors import ConfigError, PlanError
from scaling.planner.machines.detect import n_devices
from scaling.planner.run_plan import make_plan
from scaling.units import counted


def elastic_sizes(config: RunConfig) -> tuple[int, ...]:
    """World sizes that the run may have, ascending; one alone, its plan's, where it is not elastic.

    Elastic is a run on a standing Ray cluster with `cluster.min_devices`, or whose machines may be
    taken back, if its layout leaves dp open. It shrinks by whole nodes, or on a single node by
    devices, to as few as make a legal plan that fits. Raises ConfigError or PlanError for a
    `cluster.min_devices` that cannot be.
    """
    cluster, whole = config.cluster, make_plan(config).layout.world_size
    fixed = config.layout.dp is not None or config.layout.engine == "reference"
    if cluster.min_devices is not None:
        _check(config, whole, fixed)
    elif not cluster.preemptible or cluster.kind != "existing" or fixed:
        return (whole,)
    per_node = cluster.devices_per_node or 1
    step = per_node if cluster.n_nodes > 1 else 1
    least = cluster.min_devices or 1
    smaller = [
        size for size in range(step, whole, step) if size >= least and _is_size(config, size)
    ]
    return (*smaller, whole)


def _check(config: RunConfig, whole: int, fixed: bool) -> None:
    cluster = config.cluster
    assert cluster.min_devices is not None
    if cluster.kind != "existing":
        raise ConfigError(
            f"cluster.min_devices={cluster.min_devices}, but cluster={cluster.name} is this "
            "machine alone",
            "cluster.kind=embedded",
            "Machines that come and go join a Ray cluster that stands: cluster.kind=existing "
            "cluster.address=HOST:6379.",
        )
    if fixed:
        raise ConfigError(
            f"cluster.min_devices={cluster.min_devices}, but the layout fixes how many ranks "
            "there are",
            f"layout.dp={config.layout.dp}, layout.engine={config.layout.engine}",
            "Leave layout.dp to the planner (null), which fits it to the devices that are there.",
        )
    if cluster.min_devices > whole:
        raise PlanError(
            f"cluster.min_devices={cluster.min_devices} is more than the "
            f"{counted(whole, 'device')} that the plan uses",
            f"cluster={cluster.name}",
            f"Use at most {whole}.",
        )


def _is_size(config: RunConfig, size: int) -> bool:
    try:
        return make_plan(with_devices(config, size)).layout.world_size == size
    except PlanError:
        return False


def with_devices(config: RunConfig, size: int) -> RunConfig:
    """The configuration on so many devices of its cluster: whole nodes of them, or a part of
    one."""
    cluster = config.cluster
    if size == n_devices(config):
        return config
    per_node = cluster.devices_per_node or 1
    nodes = (
        {"n_nodes": size // per_node}
        if size % per_node == 0
        else {"n_nodes": 1, "devices_per_node": size}
    )
    return config.model_copy(update={"cluster": cluster.model_copy(update=nodes)})
