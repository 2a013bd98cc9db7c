"""Bytes that one device holds at the peak of a training step."""

from __future__ import annotations

from dataclasses import dataclass, fields

from scaling.config import ModelConfig, RunConfig
from scaling.plan.attention import extra_bytes_per_token
from scaling.plan.counts import block_params, count, head_positions
from scaling.plan.degrees import Layout
from scaling.plan.lengths import lengths

GPU_CONTEXT_BYTES = 1_000_000_000
"""CUDA context, cuBLAS and NCCL workspaces, and the allocator's fragments: assumption."""

CPU_PROCESS_BYTES = 600_000_000
"""A worker process before it holds a model. Measured 0.40 GB resident after importing torch 2.13.0, deepspeed 0.19.8,
ray.train 2.60.0 and webdataset 1.0.2 on Linux; the rest, for loader, buffers and allocator, is an assumption."""

BUCKET_ELEMENTS = 500_000_000
"""Gradients gathered before they are sent: DeepSpeed's default reduce_bucket_size; one bucket at a time: assumption."""

GATHERED_BLOCKS = 2
"""Blocks whose weights ZeRO-3 holds whole at once, the running and the next one: assumption."""

LOSS_CHUNK_ROWS = {"cpu": 256, "gpu": 4096}
"""Tokens whose logits are held at once: those of scaling/model/loss.py, with which a test compares them."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on each device, by what they hold."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    overhead: int

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


def estimate_memory(config: RunConfig, layout: Layout) -> MemoryEstimate:
    """Model states after Rajbhandari et al. 2020 (arXiv:1910.02054, section 5), activations after Korthikanti et al. 2022.

    The dp ranks share the optimiser's part from stage 1 on, the gradients from 2, the weights at 3.
    """
    n_params = count(config).n_params
    shard = [-(-n_params // layout.dp) if layout.zero_stage >= stage else n_params for stage in (1, 2, 3)]
    weight, gradient, optimizer = _state_bytes(config, layout)
    return MemoryEstimate(
        weights=weight * shard[2],
        gradients=gradient * shard[1],
        optimizer=optimizer * shard[0],
        activations=_activation_bytes(config, layout),
        logits=_logit_bytes(config, layout),
        overhead=_overhead_bytes(config, layout, n_params),
    )


def _state_bytes(config: RunConfig, layout: Layout) -> tuple[int, int, int]:
    """Bytes a parameter of weights, gradients and optimiser.

    DeepSpeed keeps an fp32 master of its shard beside the two moments, also of fp32 weights (its stage_1_and_2.py clones
    them). The reference engine has fp32 weights alone, and in bf16 the copies that autocast makes of them.
    """
    if layout.engine == "deepspeed":
        return dtype_bytes(config), dtype_bytes(config), 12
    return 4 if config.dtype == "fp32" else 6, 4, 8


def dtype_bytes(config: RunConfig) -> int:
    """Bytes of an activation or a working weight."""
    return 4 if config.dtype == "fp32" else 2


def _activation_bytes(config: RunConfig, layout: Layout) -> int:
    """What the forward keeps for the backward on one device, the loss apart.

    Every block, or with full checkpointing every block's input and the whole of the one that is recomputed; then the
    input and output of the final norm. A decoder beside an encoder also has cross-attention: at its own positions what
    self-attention keeps and a norm, without keys and values, which are kept at the encoder's.
    """
    model, width, shape = config.model, dtype_bytes(config), lengths(config)
    residual_width = 4 if layout.engine == "reference" else width
    one = _block_bytes_per_token(model, width, residual_width)
    q_width, kv_width = model.n_heads * model.head_width, model.kv_heads * model.head_width
    cross = residual_width * 2 * model.d_model + width * 2 * q_width + (model.d_model if model.dropout > 0 else 0)
    block = (shape.inputs + shape.targets) * one
    block += shape.inputs * extra_bytes_per_token(config, shape.inputs, width, causal=model.family == "gpt")
    if shape.targets:
        block += shape.targets * extra_bytes_per_token(config, shape.targets, width, causal=True)
        block += shape.targets * cross + shape.inputs * width * 2 * kv_width
    positions = shape.inputs + shape.targets
    if layout.activation_checkpointing == "full":
        blocks = model.n_layers * positions * residual_width * model.d_model + block
    else:
        blocks = model.n_layers * block
    return layout.micro_batch_size * (blocks + positions * 2 * residual_width * model.d_model)


def _block_bytes_per_token(model: ModelConfig, width: int, residual_width: int) -> int:
    """Bytes that one block keeps per token: `width` a value, `residual_width` a value of the residual stream.

    Korthikanti et al. 2022 (arXiv:2205.05198), eq. 2, summed over its parts: without the term 5as/h, since fused attention
    keeps no T x T matrix but one fp32 log-sum a head; with the widths of grouped queries; with four values of d_ff for
    swiglu (gate, its silu, up, their product) in place of two; with masks only where there is dropout.
    With both widths 2, GELU, dropout and full heads it is 34 d_model + 4 n_heads, the paper's 34sbh. Where the widths
    differ (autocast), each linear that reads the residual stream keeps its own cast of it.
    """
    q_width, kv_width = model.n_heads * model.head_width, model.kv_heads * model.head_width
    n_wide, kept_ff = (2, 4) if model.gated else (1, 2)
    n_inputs = 3 + n_wide if width != residual_width else 2
    norms = 2 * model.d_model
    attention = q_width + 2 * kv_width + q_width
    feed_forward = model.experts_per_token * kept_ff * model.ff_width
    if model.n_experts > 1:  # each expert's part of the input and of the output, the latter in fp32 before and after its weight
        feed_forward += model.experts_per_token * model.d_model * (1 + 8 // width)
    masks = 2 * model.d_model if model.dropout > 0 else 0
    return residual_width * norms + width * (n_inputs * model.d_model + attention + feed_forward) + masks + 4 * model.n_heads


def _logit_bytes(config: RunConfig, layout: Layout) -> int:
    """The peak of the loss, which makes its gradients chunk by chunk in the forward.

    Of a chunk: log-probabilities in fp32, and the logits before or their gradient after them. Of all: the gradient of the
    head's V x D matrix in fp32, one chunk's part of it, and the gradient of the head's input.
    """
    width, d_model = dtype_bytes(config), config.model.d_model
    tokens = layout.micro_batch_size * head_positions(config)
    rows = min(tokens, LOSS_CHUNK_ROWS[config.cluster.device.kind])
    return (4 + width) * config.vocab_size * (rows + d_model) + width * tokens * d_model


def _overhead_bytes(config: RunConfig, layout: Layout, n_params: int) -> int:
    """The process or device context, and DeepSpeed's buffers where there is something to communicate."""
    context = GPU_CONTEXT_BYTES if config.cluster.device.kind == "gpu" else CPU_PROCESS_BYTES
    if layout.dp == 1:
        return context
    width = dtype_bytes(config)
    buffers = width * min(n_params, BUCKET_ELEMENTS)
    if layout.zero_stage == 3:
        elsewhere = n_params - -(-n_params // layout.dp)
        buffers += width * min(elsewhere, GATHERED_BLOCKS * block_params(config.model))
    return context + buffers
