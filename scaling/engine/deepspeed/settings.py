"""A layout as DeepSpeed's configuration."""

from __future__ import annotations

from typing import Any

import torch

from scaling.config.run_config import RunConfig
from scaling.planner.cost.counts import count
from scaling.planner.cost.setting import REDUCE_BUCKET
from scaling.planner.layout import Layout


def deepspeed_config(config: RunConfig, layout: Layout) -> dict[str, Any]:
    """The run as a configuration of DeepSpeed, whose data-parallel ranks are ours and their context
    parallel ones: all that sum gradients of the same weights."""
    # memory_efficient_linear would patch F.linear for the whole process.
    zero: dict[str, Any] = {"stage": layout.zero_stage, "memory_efficient_linear": False}
    # Each gradient is reduced to the rank that owns it: P elements. By default all ranks receive it
    # and most drop it: 2 P.
    zero["use_multi_rank_bucket_allreduce"] = False
    # DeepSpeed allocates two buffers of this size, even for a small model on few ranks.
    zero["reduce_bucket_size"] = min(
        REDUCE_BUCKET, count(config).n_params // (layout.tp * layout.pp)
    )
    # A pipeline reduces gradients only after its last micro-batch.
    zero["overlap_comm"] = layout.pp == 1
    if layout.zero_stage == 3:
        # Partition every parameter: one kept whole would need a path of its own on loading.
        zero["stage3_param_persistence_threshold"] = 0
    if layout.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if layout.offload == "parameters":
        zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    out: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": layout.micro_batch_size,
        "gradient_accumulation_steps": layout.grad_accum_steps,
        "gradient_clipping": config.optim.grad_clip,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": config.dtype == "bf16"},
        "steps_per_print": 10**9,
    }
    if layout.pp > 1:
        out["pipeline"] = {
            "pipe_partitioned": False,
            "grad_partitioned": False,
            "use_reentrant": False,
        }
        # Gradients of micro-batches, and of tied weights, are summed in fp32.
        if config.dtype == "bf16":
            out["data_types"] = {"grad_accum_dtype": "fp32"}
    return out
