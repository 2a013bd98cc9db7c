"""How one step is spread over devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scaling.config.cluster import Checkpointing, ContextAttention, Offload, PipelineSchedule

Engine = Literal["reference", "ddp", "deepspeed"]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Degrees of parallelism and the cut of the global batch: global_batch_size = dp x
    micro_batch_size x grad_accum_steps.

    zero_stage           of the model states over the replicas; engine="ddp" has none, and says 0
    cp                   context-parallel ranks, which share the positions of a sequence
    cp_attention         what they do for attention: swap positions for heads (ulysses), or pass
                         keys and values on (ring)
    sequence_parallel    the tp ranks also share the residual stream (Korthikanti et al. 2022,
                         section 4.2)
    pp_schedule          of a pipeline: 1f1b has one stage a rank; dualpipev two, the second on the
                         way back from the last rank
    virtual_pp           chunks of blocks of a rank under an interleaved 1F1B; 1 is the plain one
    shard_ranks          ranks among which ZeRO shards where that is not all that hold the same part
                         (hybrid sharding)
    offload              what the host's memory holds: the optimiser's states, or the weights of
                         ZeRO-3 besides
    """

    dp: int
    tp: int
    pp: int
    zero_stage: int
    micro_batch_size: int
    grad_accum_steps: int
    activation_checkpointing: Checkpointing
    engine: Engine
    cp: int = 1
    cp_attention: ContextAttention = "ulysses"
    sequence_parallel: bool = False
    pp_schedule: PipelineSchedule = "1f1b"
    virtual_pp: int = 1
    offload: Offload = "none"
    shard_ranks: int | None = None

    @property
    def world_size(self) -> int:
        return self.dp * self.tp * self.pp * self.cp

    @property
    def is_dualpipev(self) -> bool:
        """Whether a pipeline rank has two stages (pp_schedule)."""
        return self.pp_schedule == "dualpipev"

    @property
    def n_stages(self) -> int:
        """Parts into which a pipeline cuts the blocks."""
        return self.pp * (2 if self.is_dualpipev else 1)

    def stages_of(self, pp_rank: int) -> tuple[int, ...]:
        """The stages of a pipeline rank, in the order in which a micro-batch reaches them."""
        # DualPipeV folds the stages: the first rank has the first and the last.
        return (pp_rank, self.n_stages - 1 - pp_rank) if self.is_dualpipev else (pp_rank,)

    @property
    def bubble_share(self) -> float:
        """Part of a step in which a pipeline rank waits for others, where backward takes twice as
        long as forward and all stages as long as each other: (p - 1) / (m + p - 1) under 1F1B; see
        `scaling.planner.cost.time_model` for DualPipeV."""
        waits = (4 * self.pp - 5) / 6 if self.is_dualpipev else (self.pp - 1) / self.virtual_pp
        return waits / (self.grad_accum_steps + waits)

    @property
    def replicas(self) -> int:
        """Ranks that hold the same part of the model."""
        return self.dp * self.cp

    @property
    def shards(self) -> int:
        """Parts into which ZeRO cuts the states."""
        return min(self.shard_ranks or self.replicas, self.replicas)
