"""What is trained, as numbers: the only form in which memory, time and search know a model.

A configuration and a row of a table of measurements both become a `Workload`, so that what is
scored is what plans.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Stack:
    """Equal blocks, one after another.

    length         positions of a sequence in it
    attended       positions that each position multiplies its query with, not halved for causality
    causal         whether a fused kernel may skip half of them
    cross_length   positions of the other stack that cross-attention reads, 0 without it
    block_params   of one block, all trained numbers
    extra_bytes    that self-attention keeps per position beyond fused full attention without a bias
    """

    n_blocks: int
    length: int
    attended: float
    causal: bool
    block_params: int
    cross_length: int = 0
    extra_bytes: float = 0.0


@dataclass(frozen=True)
class Workload:
    """One model at one sequence length.

    embedding_params  of tokens, segments and positions; head_params of an untied head and what
                      stands before it
    tied              the last pipeline stage holds a copy of the first one's token embedding
    head_positions    of a sequence, for which logits are made
    seq_len           tokens by which a run counts, for one sequence
    flops_per_token   forward and backward of the model, without recomputation:
                      `counts.flops_per_sequence`
    distinct_blocks   False where all blocks of a stack are one and the same
    full_attention    every position attends to all before it, or to all
    """

    name: str
    stacks: tuple[Stack, ...]
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_ff: int
    gated: bool
    dropout: bool
    vocab_size: int
    embedding_params: int
    head_params: int
    tied: bool
    head_positions: int
    seq_len: int
    flops_per_token: float
    n_experts: int = 1
    experts_per_token: int = 1
    distinct_blocks: bool = True
    full_attention: bool = True

    @cached_property
    def n_blocks(self) -> int:
        return sum(stack.n_blocks for stack in self.stacks)

    @cached_property
    def n_params(self) -> int:
        blocks = sum(
            (stack.n_blocks if self.distinct_blocks else 1) * stack.block_params
            for stack in self.stacks
        )
        return blocks + self.embedding_params + self.head_params

    @cached_property
    def q_width(self) -> int:
        return self.n_heads * self.d_head

    @cached_property
    def kv_width(self) -> int:
        return self.n_kv_heads * self.d_head
