"""What is known of devices by the names that drivers, clusters and tables give them: the files of conf/cluster/device."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from scaling.config import conf_dir

_DRIVER_NAMES = {
    "Tesla V100-SXM2-16GB": "V100-16GB",
    "Tesla V100-SXM2-32GB": "V100-32GB",
    "Tesla V100-SXM3-32GB": "V100-32GB",
    "A100-SXM4-40GB": "A100-40GB",
    "A100-SXM4-80GB": "A100-80GB",
    "H100 80GB HBM3": "H100-80GB",
    "H200": "H200-141GB",
    "B200": "B200-180GB",
    "A10G": "A10G-24GB",
    "L4": "L4-24GB",
    "L40S": "L40S-48GB",
    "GeForce RTX 4090": "RTX4090-24GB",
    "GeForce RTX 3090": "RTX3090-24GB",
    "A800-SXM4-80GB": "A800-80GB",
    "H800": "H800-80GB",
    "H20": "H20-96GB",
    "A40": "A40-48GB",
    "RTX A6000": "A6000-48GB",
    "Tesla T4": "T4-16GB",
}
"""Driver's name without the vendor -> file in conf/cluster/device. The PCIe cards of the same names have lower peaks and are
left out: for a card that is not here the peak is unknown."""


@dataclass(frozen=True)
class KnownGpu:
    """`device` holds the keys of DeviceConfig."""

    device: dict[str, Any]
    nvlink_gb_per_s: float


def known_gpu(driver_name: str) -> KnownGpu | None:
    """The data sheet of a GPU such as "NVIDIA A100-SXM4-80GB"; None for a name that is not in the table."""
    name = _DRIVER_NAMES.get(driver_name.removeprefix("NVIDIA").strip())
    if name is None:
        return None
    sheet = sheet_of(name)
    return KnownGpu(sheet, sheet["intra_node_gb_per_s"])


@cache
def device_names() -> tuple[str, ...]:
    """Every device of the table: MODEL-MEMORY."""
    return tuple(sorted(path.stem for path in _folder().glob("*-*GB.yaml")))


def device_sheet(name: str) -> dict[str, Any]:
    """Of a device as people write it: A100, a100-80GB, "H100-SXM", "NVIDIA V100-SXM2-32GB". Of several memories the largest.

    Raises ValueError, which names the devices there are.
    """
    wanted = _plain(name)
    fitting = [known for known in device_names() if wanted == _plain(known) or wanted == _plain(known.split("-")[0])]
    if not fitting:
        model = wanted.split("-")[0]
        fitting = [known for known in device_names() if known.split("-")[0].lower() == model]
    if not fitting:
        raise ValueError(f"gpu={name!r} is not in the hardware table; there are {', '.join(device_names())}")
    return sheet_of(max(fitting, key=_memory))


def sheet_of(name: str) -> dict[str, Any]:
    """The file of a device, as the keys of DeviceConfig."""
    from omegaconf import OmegaConf

    sheet = OmegaConf.to_container(OmegaConf.load(_folder() / f"{name}.yaml"))
    assert isinstance(sheet, dict)
    return {str(key): value for key, value in sheet.items()}


def _folder() -> Path:
    return conf_dir() / "cluster" / "device"


def _memory(name: str) -> int:
    return int(name.rpartition("-")[2].removesuffix("GB"))


def _plain(name: str) -> str:
    """NVIDIA A100-SXM4-80GB -> a100-80gb"""
    text = re.sub(r"nvidia|tesla|geforce|amd|instinct", "", name.lower()).strip()
    text = re.sub(r"[ _-]*(sxm\d?|pcie|nvl|hbm3e?|hbm2e?)", "", text)
    text = re.sub(r"rtx[ _-]*(?=a\d)", "", text)  # RTX A6000 is A6000, RTX 4090 is RTX4090
    return re.sub(r"[ _]+", "-", text.replace("rtx ", "rtx").replace("rtx-", "rtx")).strip("-")
