"""Cross-entropy of a linear head."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def linear_cross_entropy(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    logits_NV = F.linear(x_ND, weight_VD).float()
    return F.cross_entropy(logits_NV, targets_N, ignore_index=-100, reduction="sum")
