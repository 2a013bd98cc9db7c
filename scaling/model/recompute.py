"""What of a block is kept for backward, and what is computed again."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from scaling.config.cluster import Checkpointing

_KEPT = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
}
"""Matrix products and fused attention: nearly all of a block's arithmetic."""


def run_block(kind: Checkpointing, block: nn.Module, *arguments: Any) -> Any:
    """block(*arguments). full: keep the arguments only (Chen et al. 2016, arXiv:1604.06174).
    selective: also what products and fused attention made, so that norms, activations, gates and
    rotations alone are computed again, as in spirit Korthikanti et al. 2022, section 5, whose
    attention was not fused."""
    if kind == "none":
        return block(*arguments)
    if kind == "full":
        return checkpoint(block, *arguments, use_reentrant=False)
    return checkpoint(block, *arguments, use_reentrant=False, context_fn=_contexts)


def _contexts() -> Any:
    return create_selective_checkpoint_contexts(_policy)


def _policy(_: Any, operation: Any, *__: Any, **___: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE
