"""cluster=NxMxGPU: N nodes of M GPUs of any kind in the hardware table, without a file of their
own."""

from __future__ import annotations

import re
from collections.abc import Iterable

from scaling.config.cluster import MOST_DEVICES
from scaling.config.hardware import device_sheet
from scaling.config.run_config import options_of
from scaling.errors import ConfigError

_NAME = re.compile(r"(?:([0-9]+)x)?([0-9]+)x([A-Za-z][\w. -]*?)(-spot)?", re.IGNORECASE)
_LONGEST = 100  # characters: far above any name here, far below what a file's name can hold
_WHERE = "from the command line"


def with_named_clusters(overrides: Iterable[str]) -> list[str]:
    """`overrides` with a cluster that has no file but such a name written in full. Raises
    ConfigError for an unknown GPU."""
    out: list[str] = []
    for override in overrides:
        group, _, name = override.partition("=")
        if group == "cluster" and len(name) > _LONGEST:
            raise ConfigError(
                f"cluster={name[:20]}... has {len(name)} characters",
                _WHERE,
                "Write NxMxGPU, as 4x8xH100.",
            )
        match = _NAME.fullmatch(name) if group == "cluster" else None
        if match is None or name in options_of("cluster"):
            out.append(override)
        else:
            out += _in_full(name, match)
    return out


def _in_full(name: str, match: re.Match[str]) -> list[str]:
    nodes, per_node = int(match.group(1) or 1), int(match.group(2))
    if not nodes or not per_node:
        raise ConfigError(
            f"cluster={name} has no devices", _WHERE, "Both numbers of NxMxGPU are 1 or more."
        )
    if nodes * per_node > MOST_DEVICES:
        what = f"cluster={name} has {nodes * per_node:,} devices"
        raise ConfigError(what, _WHERE, f"A cluster has at most {MOST_DEVICES:,}.")
    try:
        device = device_sheet(match.group(3))["name"]
    except ValueError as error:
        what, _, there = str(error).rpartition("; ")
        fix = (
            f"{there[:1].upper()}{there[1:]}; -spot may follow. "
            "For another memory set cluster.device.memory_gb=GB."
        )
        raise ConfigError(f"cluster={name}: {what}", _WHERE, fix) from None
    given = [
        f"cluster.name='{name}'",
        f"cluster.n_nodes={nodes}",
        f"cluster.devices_per_node={per_node}",
    ]
    spot = ["cluster.preemptible=true", "cluster.max_failures=20"] if match.group(4) else []
    return ["cluster=nodes", f"cluster/device={device}", *given, *spot]
