"""cluster=NxMxGPU: N nodes of M GPUs of any kind in the hardware table, without a file of their own."""

from __future__ import annotations

import re
from collections.abc import Iterable

from scaling.config import conf_dir
from scaling.errors import ConfigError
from scaling.plan.hardware import device_names, device_sheet

_NAME = re.compile(r"^(?:(\d+)x)?(\d+)x([A-Za-z][\w.-]*?)(-spot)?$")


def with_named_clusters(overrides: Iterable[str]) -> list[str]:
    """`overrides` with a cluster that has no file but such a name written in full. Raises ConfigError for an unknown GPU."""
    out: list[str] = []
    for override in overrides:
        group, _, name = override.partition("=")
        match = _NAME.match(name) if group == "cluster" else None
        if match is None or (conf_dir() / "cluster" / f"{name}.yaml").exists():
            out.append(override)
        else:
            out += _in_full(name, match)
    return out


def _in_full(name: str, match: re.Match[str]) -> list[str]:
    nodes, per_node = int(match.group(1) or 1), int(match.group(2))
    if not nodes or not per_node:
        raise ConfigError(f"cluster={name} has no devices", "from the command line", "Both numbers of NxMxGPU are 1 or more.")
    try:
        device = device_sheet(match.group(3))["name"]
    except ValueError:
        raise ConfigError(
            f"cluster={name} names the GPU {match.group(3)!r}, which is not in conf/cluster/device",
            "from the command line",
            f"There are {', '.join(device_names())}.",
        ) from None
    given = [f"cluster.name={name}", f"cluster.n_nodes={nodes}", f"cluster.devices_per_node={per_node}"]
    spot = ["cluster.preemptible=true", "cluster.max_failures=20"] if match.group(4) else []
    return ["cluster=nodes", f"cluster/device={device}", *given, *spot]
