"""How one step is spread over devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Layout:
    """Degrees of parallelism and the cut of the global batch: global_batch_size = dp x micro_batch_size x grad_accum_steps.

    With engine="reference" there is one rank and no ZeRO; `zero_stage` is then reported as 1.
    """

    dp: int
    tp: int
    pp: int
    zero_stage: Literal[1, 2, 3]
    micro_batch_size: int
    grad_accum_steps: int
    activation_checkpointing: Literal["none", "full"]
    engine: Literal["reference", "deepspeed"]

    @property
    def world_size(self) -> int:
        return self.dp * self.tp * self.pp
