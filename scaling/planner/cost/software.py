"""How a training program holds and computes what every program must: bytes of states, kernels,
buffers, overlap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Attention = Literal["fused", "softmax", "eager"]


@dataclass(frozen=True)
class Software:
    """Traits that move memory or time.

    weight_bytes, gradient_bytes, optimizer_bytes  a parameter; the optimiser's with its fp32 master
    width, residual_width  bytes of an activation, and of the residual stream
    attention          fused: no T x T matrix is kept; softmax: one fused softmax kernel over it;
                       eager: a kernel an operation
    flash              generation of the fused attention: FlashAttention 1, 2, or 3 and cuDNN's
    fp8                products are in 8 bits
    elementwise        passes over memory of element-wise operations, 1 where each chain of them is
                       one kernel
    fuses_gate         a gated feed-forward layer's activation and product, and the rotation of
                       queries and keys, are one kernel
    fuses_norms        RMSNorm is one kernel; LayerNorm always is
    kernels            launched for the forward of a block
    adam_bytes         read and written a parameter by the optimiser
    logit_bytes        held for each position and entry of the vocabulary at the peak of the loss
    loss_chunk_rows    positions whose logits are held at once, with what they become; None: all
    kept_gated         values of d_ff that a gated feed-forward layer keeps: gate, its activation,
                       up, product; 3 where fused
    kept_ff_extra      values of d_ff that an unfused activation function keeps beside its input and
                       output
    kept_norm          bytes that an unfused RMSNorm keeps of each value beside input and output
    selective          what selective recomputation makes again: core: attention's T x T; pointwise:
                       all but products and
                       attention; half: that and every second product
    pads_vocabulary    to a multiple of 128 tp
    whole_gradients    tp ranks each send the whole gradient to the stage before, not a part of it
    shards_gradients   from ZeRO stage 2 on, also while gradients accumulate
    gathers_again      with sequence parallel norms, the inputs of linear layers for backward, which
                       else are kept whole
    gradient_overlap   gradients are sent while backward computes
    hides_tensor       traffic of tensor parallelism overlaps with the products it feeds
    hides_gathers      weights of ZeRO-3 are gathered while others compute
    gathers            collectives for the weights of one block
    live_parameters    limit of what ZeRO-3 holds whole; None: blocks
    partitions_checkpoints  the tp ranks share the inputs of recomputed blocks
    bucket_elements    gradients gathered before they are sent
    n_buckets          buffers for them
    buckets_alone      they are there too where no other rank has the same parameters
    context_bytes      process or device context, library workspaces; None: the fitted constant
    """

    name: str
    weight_bytes: float = 2
    gradient_bytes: float = 2
    optimizer_bytes: float = 12
    width: int = 2
    residual_width: int = 2
    attention: Attention = "fused"
    flash: Literal[1, 2, 3] = 2
    fp8: bool = False
    elementwise: float = 1.0
    fuses_gate: bool = True
    fuses_norms: bool = True
    kernels: int = 40
    adam_bytes: float = 30
    logit_bytes: float = 8
    loss_chunk_rows: int | None = None
    kept_gated: int = 4
    kept_ff_extra: int = 0
    kept_norm: int = 0
    selective: Literal["core", "pointwise", "half"] = "core"
    pads_vocabulary: bool = False
    whole_gradients: bool = False
    shards_gradients: bool = True
    gathers_again: bool = True
    gradient_overlap: bool = True
    hides_tensor: bool = False
    hides_gathers: bool = True
    gathers: int = 1
    live_parameters: int | None = None
    partitions_checkpoints: bool = False
    bucket_elements: int = 500_000_000
    n_buckets: int = 1
    buckets_alone: bool = False
    context_bytes: float | None = None

    def vocabulary(self, n_entries: int, tp: int) -> int:
        """Entries that one of `tp` ranks computes logits of."""
        multiple = 128 * tp if self.pads_vocabulary else 1
        return -(-(-(-n_entries // multiple) * multiple) // tp)
