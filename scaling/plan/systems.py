"""Programs whose measurements are published: the traits by which they differ."""

from __future__ import annotations

from dataclasses import replace

from scaling.plan.software import Software

LIVE = 1_000_000_000
"""DeepSpeed's default stage3_max_live_parameters (deepspeed/runtime/zero/config.py)."""

MEGATRON = Software(
    "Megatron",
    gradient_bytes=4,
    attention="fused",
    logit_bytes=8,
    gradient_overlap=False,
    hides_gathers=False,
    gathers=6,
    live_parameters=LIVE,
)
"""fp32 gradients and reduction in bf16 (Megatron-LM README, --accumulate-allreduce-grads-in-fp32); fused
 bias, dropout and softmax kernels."""

FSDP = Software("FSDP", weight_bytes=4, gradient_bytes=4, optimizer_bytes=8, logit_bytes=10, bucket_elements=0)
"""fp32 shards and moments; 16-bit weights are gathered (PyTorch FSDP, MixedPrecision)."""

HF = Software("HF Trainer", weight_bytes=2, gradient_bytes=2, optimizer_bytes=12, attention="eager", elementwise=2.5, kernels=60,
              logit_bytes=14, kept_ff_extra=4, hides_gathers=False, gathers=6, live_parameters=LIVE)  # fmt: skip
"""Eager PyTorch: a kernel an operation; logits are cast to fp32, shifted and copied."""

DEEPSPEED = Software(
    "DeepSpeed", gradient_bytes=2, optimizer_bytes=16, logit_bytes=10, hides_gathers=False, gathers=6, live_parameters=LIVE
)
"""Optimiser's part with an fp32 gradient of the own shard during the step (deepspeed/runtime/zero/stage_1_and_2.py)."""


def software_of(system: str, attention: str, precision: str, notes: str = "") -> Software:
    """The traits of a program by its name, and of its attention by the words of `attention_impl`."""
    name, words = system.lower(), attention.lower()
    software = replace(_base(name, precision.lower()), fp8="fp8" in precision.lower())
    if "pure" in notes.lower() and software.name == "FSDP":
        software = replace(software, weight_bytes=2, gradient_bytes=2, optimizer_bytes=4)
    if "eager" in words or "naive" in words or "math" in words:
        return replace(software, attention="eager")
    if "no flash" in words or "softmax" in words:
        return replace(software, attention="softmax")
    if words or software.name != "Megatron-DeepSpeed":
        return software if words else replace(software, attention=software.attention)
    return replace(software, attention="softmax")


def _base(name: str, precision: str) -> Software:
    if "megatron" in name and "deepspeed" in name:
        partitions = "zero3" in name  # measured: what fits grows with tp (BigScience, experiments/gpt2.md)
        if precision == "fp16":
            return replace(MEGATRON, name="Megatron-DeepSpeed", gradient_bytes=2, optimizer_bytes=16,
                           partitions_checkpoints=partitions)  # fmt: skip
        return replace(MEGATRON, name="Megatron-DeepSpeed", gradient_bytes=6, partitions_checkpoints=partitions)
    if "neox" in name:
        return replace(MEGATRON, name="Megatron-DeepSpeed", gradient_bytes=2 if precision == "fp16" else 6)
    if "bridge" in name or "nemo" in name or "core" in name:
        return replace(MEGATRON, gradient_overlap=True, hides_tensor=True, kernels=25)
    if "megatron" in name:
        return MEGATRON
    if "paddle" in name:
        return replace(DEEPSPEED, name="PaddleNLP", optimizer_bytes=12, shards_gradients=False)
    if "hf" in name or "transformers" in name or "trainer" in name:
        return HF
    if "composer" in name or "foundry" in name:
        return replace(FSDP, logit_bytes=4)
    if "fsdp" in name or "titan" in name or "olmo" in name or "composer" in name:
        return FSDP
    return replace(DEEPSPEED, name="DeepSpeed")
