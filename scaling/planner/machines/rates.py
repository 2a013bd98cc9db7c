"""What time needs to know of the machines: rates in bytes and FLOP/s of one device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scaling.config.cluster import Generation

FP8_GENERATIONS: tuple[Generation, ...] = ("ada", "hopper", "blackwell", "cdna")
"""Those with products in 8 bits."""

FLASH_3_GENERATIONS: tuple[Generation, ...] = ("hopper", "blackwell")
"""Those on which fused attention overlaps its products and its softmax, as FlashAttention 3
does."""


@dataclass(frozen=True)
class Machine:
    """Equal nodes of equal devices.

    peak_flops_per_s   dense, in the dtype of the products
    intra_bytes_per_s, inter_bytes_per_s  of one device and direction, within a node and between
                                          nodes; None: unknown
    host_bytes_per_s   between a device and its host
    """

    device: str
    kind: Literal["cpu", "gpu"]
    generation: Generation
    memory_bytes: float
    peak_flops_per_s: float | None
    bytes_per_s: float | None
    intra_bytes_per_s: float | None
    inter_bytes_per_s: float | None
    devices_per_node: int
    n_devices: int
    host_bytes_per_s: float = 20e9

    @property
    def n_nodes(self) -> int:
        return -(-self.n_devices // self.devices_per_node)
