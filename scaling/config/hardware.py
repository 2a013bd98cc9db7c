"""What is known of devices by the names that drivers, clusters and tables give them: the files of
conf/cluster/device."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from scaling.config.plugins import added
from scaling.config.run_config import options_of

_FOLDER = "cluster/device"
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
"""Driver's name without the vendor -> file in conf/cluster/device. The PCIe cards of the same names
have lower peaks and are left out: for a card that is not here the peak is unknown."""


_FORM = re.compile(r"sxm\d?|oam|hbm\d?e?")
"""Words of a name that the sheets, which are of SXM and OAM modules, already say. PCIe and NVL
cards are others and slower."""
_PCIE_CARDS = ("t4", "l4", "l40s", "a40", "a6000", "a10g", "rtx3090", "rtx4090")
"""Chips that there are only on PCIe cards, which their sheets describe."""
_GIGABYTES = re.compile(r"(\d+(?:\.\d+)?)g(?:i?b)?")
_SAME_MEMORY = 0.05
"""Relative difference up to which a memory is a sheet's: drivers and tables round it, in GB or
GiB."""


@dataclass(frozen=True)
class KnownGpu:
    """`device` holds the keys of DeviceConfig."""

    device: dict[str, Any]
    nvlink_gb_per_s: float


def known_gpu(driver_name: str) -> KnownGpu | None:
    """The data sheet of a GPU such as "NVIDIA A100-SXM4-80GB"; None for a name that is not in the
    table."""
    name = (_DRIVER_NAMES | added("driver_names")).get(driver_name.removeprefix("NVIDIA").strip())
    if name is None:
        return None
    sheet = sheet_of(name)
    return KnownGpu(sheet, sheet["intra_node_gb_per_s"])


@cache
def device_names() -> tuple[str, ...]:
    """Every device of the table: MODEL-MEMORY."""
    return tuple(sorted(name for name in options_of(_FOLDER) if re.fullmatch(r".*-.*GB", name)))


def device_sheet(name: str) -> dict[str, Any]:
    """The sheet of a device as people write it: A100, a100-80GB, "H100-SXM", "NVIDIA
    V100-SXM2-32GB". Of several memories the largest.

    Raises ValueError, which names the devices there are.
    """
    chip, memory, rest = _parts(name)
    fitting = [known for known in device_names() if _chip(known) == chip]
    if not fitting:
        raise ValueError(
            f"gpu={name!r} is not in the hardware table; there are {', '.join(device_names())}"
        )
    there = f"there {'are' if len(fitting) > 1 else 'is'} {', '.join(fitting)}"
    if rest == "pcie" and chip in _PCIE_CARDS:
        rest = ""
    if rest:
        raise ValueError(
            f"gpu={name!r}: nothing is known of {rest!r} behind {fitting[0].split('-')[0]}; {there}"
        )
    if memory is not None:
        fitting = [known for known in fitting if abs(memory / _memory(known) - 1) <= _SAME_MEMORY]
        if not fitting:
            raise ValueError(f"gpu={name!r}: no sheet has {memory:g} GB; {there}")
    return sheet_of(max(fitting, key=_memory))


def sheet_of(name: str) -> dict[str, Any]:
    """The file of a device, as the keys of DeviceConfig."""
    from omegaconf import OmegaConf

    sheet = OmegaConf.to_container(OmegaConf.load(options_of(_FOLDER)[name]))
    assert isinstance(sheet, dict)
    return {str(key): value for key, value in sheet.items()}


def _memory(name: str) -> int:
    return int(name.rpartition("-")[2].removesuffix("GB"))


def _chip(known: str) -> str:
    return known.split("-")[0].lower()


def _parts(name: str) -> tuple[str, float | None, str]:
    """NVIDIA A100-SXM4-80GB -> (a100, 80, ""): the chip, its memory in GB, and words that mean
    nothing here."""
    text = re.sub(
        r"^(nvidia|amd)\b|\b(tesla|geforce|instinct)\b", "", name.lower().replace("_", " ")
    ).strip()
    # RTX A6000 is A6000
    text = re.sub(
        r"\brtx[ -]*", lambda found: "" if text[found.end() :].startswith("a") else "rtx", text
    )
    words = [word for word in re.split(r"[ -]+", text) if word and not _FORM.fullmatch(word)]
    memories = [float(found.group(1)) for word in words if (found := _GIGABYTES.fullmatch(word))]
    rest = [word for word in words[1:] if not _GIGABYTES.fullmatch(word)]
    if len(set(memories)) > 1:
        rest += [f"{memory:g}GB" for memory in memories]
    return words[0] if words else "", memories[0] if memories else None, "-".join(rest)
