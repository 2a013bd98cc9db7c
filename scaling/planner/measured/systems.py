"""Programs whose measurements are published: the traits by which they differ, from what a row of a
table says of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from scaling.planner.cost.software import Attention, Software

LIVE = 1_000_000_000
"""DeepSpeed's default stage3_max_live_parameters (deepspeed/runtime/zero/config.py)."""

UNFUSED = 1.3
"""Passes of element-wise kernels of eager PyTorch over those of fused ones: assumption, which LLM
Foundry's rows bear out."""

RECENT = 9999
"""The year of a row without a date."""

MEGATRON = Software(
    "Megatron",
    gradient_bytes=4,
    logit_bytes=10,
    gradient_overlap=False,
    hides_gathers=False,
    gathers=6,
    live_parameters=LIVE,
    pads_vocabulary=True,
)
"""Gradients in bf16 are summed and reduced in fp32 (Megatron-LM README,
--accumulate-allreduce-grads-in-fp32); bias, dropout and softmax are fused kernels, and the
vocabulary is padded. The loss holds logits in 16 bits, in fp32, and their exponentials."""

CORE = replace(
    MEGATRON,
    name="Megatron-Core",
    logit_bytes=8,
    kept_gated=3,
    gradient_overlap=True,
    hides_tensor=True,
    hides_gathers=True,
    gathers=1,
    live_parameters=None,
    kernels=25,
    flash=3,
)
"""Transformer Engine's kernels and cuDNN's attention; gradients, sharded weights and tensor
parallel traffic overlap with compute; SwiGLU is one kernel, which makes the activation again, and
so is the loss."""

FSDP = Software(
    "FSDP",
    weight_bytes=4,
    gradient_bytes=4,
    optimizer_bytes=8,
    logit_bytes=10,
    bucket_elements=0,
    elementwise=UNFUSED,
    fuses_gate=False,
    fuses_norms=False,
    kept_norm=6,
    selective="half",
)
"""fp32 shards and moments; 16-bit weights are gathered (PyTorch FSDP, MixedPrecision). RMSNorm
keeps an fp32 and a 16-bit copy. Selective recomputation saves attention and every second product
(torchtitan, torch.utils.checkpoint)."""

HF = Software(
    "HF Trainer",
    weight_bytes=2,
    gradient_bytes=2,
    optimizer_bytes=18,
    attention="eager",
    elementwise=2 * UNFUSED,
    fuses_gate=False,
    fuses_norms=False,
    kept_norm=6,
    kernels=60,
    logit_bytes=14,
    kept_ff_extra=4,
    gradient_overlap=False,
    hides_gathers=False,
    gathers=6,
    live_parameters=LIVE,
)
"""Eager PyTorch: a kernel an operation, GELU eight of them; logits are cast to fp32, shifted and
copied."""

DEEPSPEED = Software(
    "DeepSpeed",
    gradient_bytes=2,
    optimizer_bytes=18,
    logit_bytes=10,
    elementwise=UNFUSED,
    fuses_gate=False,
    fuses_norms=False,
    kept_norm=6,
    gradient_overlap=False,
    hides_gathers=False,
    gathers=6,
    live_parameters=LIVE,
)
"""A rank also holds two flat gradients of its shard for the step, in fp32 and in 16 bits
(deepspeed/runtime/zero/stage_1_and_2.py). overlap_comm is off by default below stage 3, and what
stage 3 hides was not seen in the published rows."""

NAMES: tuple[tuple[str, Software], ...] = (
    (r"bridge|nemo|mcore|core\b", CORE),
    (r"megatron", MEGATRON),
    (
        r"nanotron",
        replace(
            MEGATRON, name="nanotron", gradient_bytes=6, fuses_gate=False, pads_vocabulary=False
        ),
    ),
    (
        r"paddle",
        replace(
            DEEPSPEED, name="PaddleNLP", optimizer_bytes=12, shards_gradients=False, kept_norm=2
        ),
    ),
    (
        r"jax|maxtext|pax\b|xla|alpa\b|levanter",
        Software("XLA", weight_bytes=4, gradient_bytes=4, optimizer_bytes=8, logit_bytes=10),
    ),
    (r"\bhf\b|hugging|transformers|trainer|accelerate|factory|axolotl|trl\b", HF),
    (r"foundry|composer|mosaic", replace(FSDP, logit_bytes=4)),
    (r"fsdp|titan|olmo|lightning|litgpt|lit-gpt", FSDP),
    (r"deepspeed|zero", DEEPSPEED),
)
"""What a `system` column is searched for, in this order."""

OTHER = replace(
    DEEPSPEED,
    name="PyTorch",
    gradient_overlap=True,
    hides_gathers=True,
    gathers=1,
    live_parameters=None,
)
"""A program that is not named, or not known: eager PyTorch that overlaps what it can."""


def software_of(row: Mapping[str, str]) -> Software:
    """Traits by `system`, `precision`, `date`, `attention_impl` and `notes`; blank ones take what
    was usual at the time."""
    name, notes, mlp = (row.get(key, "").lower() for key in ("system", "notes", "mlp"))
    year, precision, sharding = (
        year_of(row),
        row.get("precision", "").lower(),
        row.get("zero_stage_or_sharding", "").lower(),
    )
    software = _base(name, precision, year)
    if software.name == "Megatron" and mlp in ("swiglu", "geglu") and year < 2024:
        software = replace(software, fuses_gate=False, fuses_norms=False, kept_norm=6)
    if "compil" in name + notes or "fms" in name:  # fms-fsdp compiles its blocks (its README)
        software = replace(
            software, elementwise=1.0, fuses_gate=True, fuses_norms=True, kept_norm=0
        )
    if software.name == "FSDP" and "pure" in notes:
        software = replace(software, weight_bytes=2, gradient_bytes=2, optimizer_bytes=4)
    if software.name == "HF Trainer":
        software = _trainer(software, name, sharding)
    if "overlap" in sharding:
        software = replace(software, gradient_overlap=True)
    if precision.startswith(("fp32", "tf32", "float32")):
        software = replace(
            software, weight_bytes=4, gradient_bytes=4, optimizer_bytes=8, width=4, residual_width=4
        )
    attention, flash = _attention(
        row.get("attention_impl", "").lower(), year, software, row.get("gpu", "")
    )
    return replace(
        software, attention=attention, flash=flash, fp8=bool(re.search(r"fp[48]", precision))
    )


def year_of(row: Mapping[str, str]) -> int:
    match = re.search(r"20\d\d", row.get("date", ""))
    return int(match.group()) if match else RECENT


def _base(name: str, precision: str, year: int) -> Software:
    if ("megatron" in name and "deepspeed" in name) or "neox" in name:
        # measured: what fits grows with tp (BigScience, experiments/gpt2.md)
        partitions = "zero3" in name
        software = replace(MEGATRON, name="Megatron-DeepSpeed", partitions_checkpoints=partitions)
        gradient, optimizer = (2, 18) if precision == "fp16" else (6, 14)
        # grad_partitioned of deepspeed/runtime/pipe/engine.py is younger than the rows
        return replace(
            software,
            gradient_bytes=gradient,
            optimizer_bytes=optimizer,
            whole_gradients=year < 2023,
        )
    software = next((found for pattern, found in NAMES if re.search(pattern, name)), OTHER)
    if software.name == "Megatron" and year >= 2024:
        return CORE
    # gradients are copied to fp32 for the step
    if software.name == "Megatron" and precision == "fp16":
        return replace(software, gradient_bytes=2, optimizer_bytes=16)
    return software


def _trainer(software: Software, name: str, sharding: str) -> Software:
    """Traits of a trainer without ZeRO: PyTorch's automatic mixed precision of fp32 weights and an
    Adam of many kernels; or FSDP's states."""
    if "fsdp" in name + sharding:
        return replace(
            software,
            weight_bytes=4,
            gradient_bytes=4,
            optimizer_bytes=8,
            hides_gathers=True,
            gathers=1,
        )
    if "deepspeed" in name and sharding not in ("0", "none", "ddp"):
        return software
    return replace(
        software,
        weight_bytes=6,
        gradient_bytes=4,
        optimizer_bytes=8,
        adam_bytes=90,
        gradient_overlap=True,
    )


def _attention(
    words: str, year: int, software: Software, gpu: str
) -> tuple[Attention, Literal[1, 2, 3]]:
    """The kernel, and of a fused one its generation; blank: fused since 2023, but on Volta."""
    if re.search(r"eager|naive|math|unfused|torch\b", words):
        return "eager", 1
    if re.search(r"no flash|softmax|^none$", words):
        return "softmax", 1
    if not words and (year < 2023 or "v100" in gpu.lower()):
        return ("eager" if software.attention == "eager" else "softmax"), 1
    numbered = re.search(r"(?:flash|fa)\D*([123])", words)
    if numbered:
        return "fused", {"1": 1, "2": 2, "3": 3}[numbered.group(1)]  # type: ignore[return-value]
    if re.search(r"cudnn|transformer engine|\bte\b", words):
        return "fused", 3
    if "sdpa" in words:
        return "fused", 2
    if re.search(r"xformers|triton", words) or year < 2024:
        return "fused", 1
    return "fused", 3 if software.flash == 3 else 2
