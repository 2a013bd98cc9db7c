"""A configuration as what the planner's models read: workload, software, machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scaling.config.run_config import RunConfig
from scaling.config.tile_sizes import LOSS_CHUNK_ROWS
from scaling.planner.cost.attention import (
    WHOLE,
    attended_by_layer,
    mean_extra_bytes_per_token,
    relative_params,
)
from scaling.planner.cost.constants import CONSTANTS, Constants
from scaling.planner.cost.counts import block_params, count, flops_per_sequence, head_positions
from scaling.planner.cost.lengths import lengths
from scaling.planner.cost.software import Software
from scaling.planner.cost.workload import Stack, Workload
from scaling.planner.layout import Engine, Layout
from scaling.planner.machines.rates import FLASH_3_GENERATIONS, Machine
from scaling.planner.measured.systems import LIVE, UNFUSED
from scaling.planner.prediction import Prediction, predict

CPU_PROCESS_BYTES = 600_000_000
"""A worker process before it holds a model. Measured 0.40 GB resident after importing torch 2.13.0,
deepspeed 0.19.8, ray.train 2.60.0 and webdataset 1.0.2 on Linux; the rest, for loader, buffers and
allocator, is an assumption."""

REDUCE_BUCKET = 40_000_000
"""Gradients that ZeRO sends at once, while backward makes the next: as many as Megatron-LM's
buckets begin with. DeepSpeed's own 500 million are one bucket for most models, and so leave nothing
to overlap; its buffers are of this size whatever the model's."""


@dataclass(frozen=True)
class Setting:
    """What a configuration asks to be planned: one workload on one machine, with the engines of
    this package; `compiled`: as they would be with train.compile=true, None where they are or
    compute on a CPU."""

    work: Workload
    machine: Machine
    engines: dict[Engine, Software]
    compiled: dict[Engine, Software] | None = None

    def predict(self, layout: Layout, constants: Constants = CONSTANTS) -> Prediction:
        return predict(self.work, layout, self.engines[layout.engine], self.machine, constants)


def setting_of(config: RunConfig) -> Setting:
    """The setting of a configuration whose cluster is resolved."""
    engines: tuple[Engine, ...] = ("reference", "ddp", "deepspeed")
    compiled = None
    if config.cluster.device.kind == "gpu" and not config.train.compile:
        fused = config.model_copy(
            update={"train": config.train.model_copy(update={"compile": True})}
        )
        compiled = {engine: software_of_run(fused, engine) for engine in engines}
    own = {engine: software_of_run(config, engine) for engine in engines}
    return Setting(workload_of(config), machine_of(config), own, compiled)


def workload_of(config: RunConfig) -> Workload:
    model, shape, counts = config.model, lengths(config), count(config)
    stacks = [_stack(config, shape.inputs, causal=model.traits.causal)]
    if shape.targets:
        stacks.append(_stack(config, shape.targets, causal=True, cross_length=shape.inputs))
    n_of_each = 1 if model.share_layers else model.n_layers
    blocks = n_of_each * sum(stack.block_params for stack in stacks)
    head = 0 if model.tie_embeddings else config.vocab_size * model.d_model
    embedding = counts.n_params_embedding - head
    return Workload(
        name=model.name,
        stacks=tuple(stacks),
        d_model=model.d_model,
        n_heads=model.n_heads,
        n_kv_heads=model.kv_heads,
        d_head=model.head_width,
        d_ff=model.ff_width,
        gated=model.gated,
        dropout=model.dropout > 0,
        vocab_size=config.vocab_size,
        embedding_params=embedding,
        head_params=counts.n_params - blocks - embedding,
        tied=model.tie_embeddings,
        head_positions=head_positions(config),
        seq_len=config.train.seq_len,
        flops_per_token=flops_per_sequence(config) / config.train.seq_len,
        n_experts=model.n_experts,
        experts_per_token=model.experts_per_token,
        distinct_blocks=not model.share_layers,
        full_attention=config.attention.kind in WHOLE
        and "local" not in (config.attention.pattern or ()),
    )


def _stack(config: RunConfig, length: int, *, causal: bool, cross_length: int = 0) -> Stack:
    seen = attended_by_layer(config, length, causal=causal)
    width = dtype_bytes(config)
    extra = mean_extra_bytes_per_token(config, length, width, causal=causal)
    return Stack(
        n_blocks=config.model.n_layers,
        length=length,
        attended=sum(seen) / len(seen),
        causal=causal,
        block_params=block_params(config.model, cross=cross_length > 0)
        + relative_params(config, causal=causal),
        cross_length=cross_length,
        extra_bytes=extra + _norm_bytes_per_token(config),
    )


def _norm_bytes_per_token(config: RunConfig) -> int:
    """Inputs that norms of queries and keys, and of sublayers' outputs, keep for backward: on CPUs
    in fp32, in which they are computed."""
    model = config.model
    width = 4 if config.cluster.device.kind == "cpu" else dtype_bytes(config)
    heads = (model.n_heads + model.kv_heads) * model.head_width if model.qk_norm == "head" else 0
    outputs = 2 * model.d_model if model.norm_position == "sandwich" else 0
    return width * (heads + outputs)


def dtype_bytes(config: RunConfig) -> int:
    """Bytes of an activation or a working weight."""
    return 4 if config.dtype == "fp32" else 2


def software_of_run(config: RunConfig, engine: Engine) -> Software:
    """The engines of this package.

    DeepSpeed keeps an fp32 master of its shard beside the two moments, also of fp32 weights (its
    stage_1_and_2.py clones them). The plain engines have fp32 weights alone, and in bf16 the copies
    that autocast makes of them. Blocks are eager PyTorch, about 60 kernels a forward (counted),
    unless train.compile fuses them; norms and attention are one kernel always. Compiled, a gated
    layer makes its activation again (measured on an H200). The loss holds a chunk's logits and fp32
    log-probabilities, or compiled their gradient.
    """
    width, device = dtype_bytes(config), config.cluster.device
    kind, plain, fused = device.kind, engine != "deepspeed", config.train.compile
    return Software(
        name=engine,
        weight_bytes=(4 if width == 4 else 6) if plain else width,
        gradient_bytes=4 if plain else width,
        optimizer_bytes=8 if plain else 12,
        width=width,
        residual_width=4 if plain else width,
        flash=_flash(device.generation),
        kept_gated=3 if fused else 4,
        fp8=config.plan.fp8,
        elementwise=1.0 if fused else UNFUSED,
        fuses_gate=fused,
        kernels=25 if fused else 60,
        selective="pointwise",
        gathers_again=False,
        logit_bytes=(2 * width if fused else width + 4)
        + (2 * width if config.model.logit_cap else 0),
        loss_chunk_rows=LOSS_CHUNK_ROWS[kind],
        hides_gathers=False,
        gathers=6,
        # DistributedDataParallel's buckets are the gradients
        bucket_elements=0 if plain else REDUCE_BUCKET,
        n_buckets=2,
        buckets_alone=True,
        live_parameters=LIVE,
        context_bytes=CPU_PROCESS_BYTES if kind == "cpu" else None,
    )


def _flash(generation: str | None) -> Literal[1, 2, 3]:
    """PyTorch's choice of a fused attention: cuDNN's on an H200 (seen in a profile, torch 2.11), as
    fast as FlashAttention 3."""
    if generation in FLASH_3_GENERATIONS:
        return 3
    return 1 if generation == "volta" else 2


def machine_of(config: RunConfig) -> Machine:
    """The machine of a resolved cluster (`detect.resolve_cluster`). Links that the cluster does not
    give are its device's."""
    cluster, device = config.cluster, config.cluster.device
    per_node = cluster.devices_per_node or device.devices_per_node
    assert per_node is not None, "resolve_cluster(config) comes first"
    tflops = device.peak_tflops_fp32 if config.dtype == "fp32" else device.peak_tflops_bf16
    return Machine(
        device=device.name,
        kind=device.kind,
        generation=device.generation or "cpu",
        memory_bytes=(device.memory_gb or 0) * 1e9,
        peak_flops_per_s=_scaled(tflops, 1e12),
        bytes_per_s=_scaled(device.memory_gb_per_s, 1e9),
        intra_bytes_per_s=_scaled(cluster.intra_node_gb_per_s or device.intra_node_gb_per_s, 1e9),
        inter_bytes_per_s=_scaled(cluster.inter_node_gb_per_s or device.inter_node_gb_per_s, 1e9),
        devices_per_node=per_node,
        n_devices=cluster.n_nodes * per_node,
    )


def usd_per_device_hour(config: RunConfig) -> float | None:
    """What the cluster says, else the list price in the device's file."""
    given = config.cluster.usd_per_device_hour
    return config.cluster.device.usd_per_hour if given is None else given


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value * unit
