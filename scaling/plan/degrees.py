"""How one step is spread over devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Checkpointing = Literal["none", "selective", "full"]
Engine = Literal["reference", "ddp", "deepspeed"]
Offload = Literal["none", "optimizer", "parameters"]


@dataclass(frozen=True)
class Layout:
    """Degrees of parallelism and the cut of the global batch: global_batch_size = dp x micro_batch_size x grad_accum_steps.

    zero_stage           of the model states over the replicas; engine="ddp" has none, and says 0
    sp                   ranks among which the positions of a sequence are dealt (Ulysses)
    sequence_parallel    the tp ranks also share the residual stream (Korthikanti et al. 2022, section 4.2)
    virtual_pp           chunks of blocks of a pipeline rank; 1 is the plain 1F1B schedule
    shard_ranks          ranks among which ZeRO shards where that is not all that hold the same part (hybrid sharding)
    offload              what the host's memory holds: the optimiser's states, or the weights of ZeRO-3 besides
    """

    dp: int
    tp: int
    pp: int
    zero_stage: int
    micro_batch_size: int
    grad_accum_steps: int
    activation_checkpointing: Checkpointing
    engine: Engine
    sp: int = 1
    sequence_parallel: bool = False
    virtual_pp: int = 1
    offload: Offload = "none"
    shard_ranks: int | None = None

    @property
    def world_size(self) -> int:
        return self.dp * self.tp * self.pp * self.sp

    @property
    def replicas(self) -> int:
        """Ranks that hold the same part of the model."""
        return self.dp * self.sp

    @property
    def shards(self) -> int:
        """Parts into which ZeRO cuts the states."""
        return min(self.shard_ranks or self.replicas, self.replicas)
