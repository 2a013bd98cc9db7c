"""What an `interconnect` column says of the links within and between nodes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PCIE_GB_PER_S = 20.0
"""One direction of PCIe 4 x16 between devices: 32 GB/s less what the host's bridges take.
Assumption."""

PORTS_GBIT = {"edr": 100, "hdr": 200, "ndr": 400, "xdr": 800}
"""Rate of one InfiniBand port of four lanes, by its generation's name (InfiniBand Trade
Association's roadmap)."""

_RATE = re.compile(
    r"(?:(\d+)\s*[x×*]\s*)?(?:[A-Za-z-]+\s+)*?(\d+(?:\.\d+)?)\s*(Gb(?!y)|Gig|Tb|GB/s|per node)"
)


@dataclass(frozen=True)
class Links:
    """GB/s of one device and direction; `domain`: devices of an NVLink domain that is larger than a
    node."""

    intra_gb_per_s: float
    inter_gb_per_s: float
    domain: int | None


def links_of(text: str, sheet: Mapping[str, Any], per_node: int, *, pcie: bool = False) -> Links:
    """Links that a text such as "8x200 Gbps HDR IB per node; NVLink" describes. What it leaves out
    is taken from the device's usual node."""
    intra, inter = float(sheet["intra_node_gb_per_s"]), float(sheet["inter_node_gb_per_s"])
    domain = re.search(r"NVL(\d+)", text)
    bridged = re.search(r"nvlink|nvswitch|\bnvl", text, re.I)
    if not bridged and (pcie or re.search(r"pcie", text, re.I)):
        intra = min(intra, PCIE_GB_PER_S)
    between = [
        part
        for part in re.split(r"[;,]", text)
        if not re.search(r"nvl|nvswitch|pcie|xgmi|infinity", part, re.I)
    ]
    told = [rate for part in between if (rate := _port_gb_per_s(part, per_node)) is not None]
    if told:
        inter = told[0]
    elif re.search(r"ethernet|TCP", text, re.I):
        inter = min(inter, 100 / 8 / per_node)
    return Links(intra, inter, int(domain.group(1)) if domain else None)


def _port_gb_per_s(text: str, per_node: int) -> float | None:
    """One device's share of a node's ports; without "per GPU" the text is of a node."""
    devices = 1 if re.search(r"per (gpu|device|card)", text, re.I) else per_node
    if rate := _RATE.search(text):
        bits = {"GB/s": 8, "Tb": 1000}.get(rate.group(3), 1) * float(rate.group(2))
        return int(rate.group(1) or 1) * bits / 8 / devices
    if port := re.search(r"(?:(\d+)\s*[x×*]?\s*)?(edr|hdr|ndr|xdr)\b", text, re.I):
        return int(port.group(1) or 1) * PORTS_GBIT[port.group(2).lower()] / 8 / devices
    return 100 / 8 / devices if "omni-path" in text.lower() else None
