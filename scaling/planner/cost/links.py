"""Seconds of traffic over the links that it takes, and how much of it hides behind compute."""

from __future__ import annotations

from scaling.planner.cost.constants import Constants
from scaling.planner.layout import Layout
from scaling.planner.machines.rates import Machine


def reduce_s(
    n_bytes: float, ranks: int, bytes_per_s: float, constants: Constants, *, calls: int = 1
) -> float:
    """A ring's reduce-scatter, or all-gather, of `n_bytes` held whole: (r - 1) / r of them pass
    each link (Thakur et al. 2005, doi:10.1177/1094342005051521). An all-reduce is two of them."""
    if ranks == 1:
        return 0.0
    return (ranks - 1) / ranks * n_bytes / bytes_per_s + calls * (
        constants.latency_s + constants.hop_s * ranks
    )


def send_s(n_bytes: float, bytes_per_s: float, constants: Constants) -> float:
    return n_bytes / bytes_per_s + constants.latency_s


def exposed(seconds: float, window_s: float, constants: Constants) -> float:
    """Seconds of traffic that do not hide behind `window_s` of compute. Some never
    do, since kernels share the device."""
    return seconds - constants.overlap * min(seconds, window_s)


def tensor_bytes_per_s(ranks: int, machine: Machine, constants: Constants) -> float:
    """Rate of a ring of neighbouring ranks; beyond a node it shares the node's ports with no
    other."""
    assert machine.intra_bytes_per_s is not None
    intra = constants.fabric_intra * machine.intra_bytes_per_s
    if ranks <= machine.devices_per_node:
        return intra
    assert machine.inter_bytes_per_s is not None
    return min(intra, constants.fabric_inter * machine.inter_bytes_per_s * machine.devices_per_node)


def group_bytes_per_s(
    layout: Layout, machine: Machine, constants: Constants, *, ranks: int
) -> float:
    """Rate of a ring of `ranks` that are tp apart. Ranks are numbered tp first, then cp, dp and pp,
    so that devices_per_node / tp of them share a node, whose ports serve tp such rings at a
    time."""
    assert machine.intra_bytes_per_s is not None
    intra = constants.fabric_intra * machine.intra_bytes_per_s
    if layout.tp * ranks <= machine.devices_per_node:
        return intra
    assert machine.inter_bytes_per_s is not None
    together = max(1, machine.devices_per_node // layout.tp)
    return min(intra, constants.fabric_inter * machine.inter_bytes_per_s * together)


def node_bytes_per_s(machine: Machine, constants: Constants) -> float:
    """Rate of a ring with one rank a node, as between the copies of a shard: each has its own share
    of the ports."""
    assert machine.intra_bytes_per_s is not None
    if machine.n_nodes == 1 or machine.inter_bytes_per_s is None:
        return constants.fabric_intra * machine.intra_bytes_per_s
    return constants.fabric_inter * machine.inter_bytes_per_s
