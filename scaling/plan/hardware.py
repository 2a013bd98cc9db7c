"""What is known of GPUs by the name that their driver gives them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scaling.config import conf_dir

_DRIVER_NAMES = {
    "A100-SXM4-40GB": ("A100-40GB", 300.0),
    "A100-SXM4-80GB": ("A100-80GB", 300.0),
    "H100 80GB HBM3": ("H100-80GB", 450.0),
    "H200": ("H200-141GB", 450.0),
}
"""Driver's name without the vendor -> file in conf/cluster/device, and NVLink GB/s a direction (data sheets). The PCIe cards
of the same names have lower peaks and are left out: for a card that is not here the peak is unknown."""


@dataclass(frozen=True)
class KnownGpu:
    """`device` holds the keys of DeviceConfig."""

    device: dict[str, Any]
    nvlink_gb_per_s: float


def known_gpu(driver_name: str) -> KnownGpu | None:
    """The data sheet of a GPU such as "NVIDIA A100-SXM4-80GB"; None for a name that is not in the table."""
    entry = _DRIVER_NAMES.get(driver_name.removeprefix("NVIDIA").strip())
    if entry is None:
        return None
    from omegaconf import OmegaConf

    name, nvlink = entry
    device = OmegaConf.to_container(OmegaConf.load(conf_dir() / "cluster" / "device" / f"{name}.yaml"))
    assert isinstance(device, dict)
    return KnownGpu({str(key): value for key, value in device.items()}, nvlink)
