"""Updates that DeepSpeed's ZeRO leaves out because they exceed limits, as it leaves out those that are not finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from scaling.engine.base import Limits


class Refusal:
    """Stands where a ZeRO optimiser computes the gradient norm, after backward and before the update.

    loss: of the step whose backward is done, the same on every rank; a collective. grad_norm: of the update that was
    refused last, where there was one in this step, which DeepSpeed itself calls infinite.
    """

    def __init__(self, optimizer: Any, stage: int, loss: Callable[[], torch.Tensor]) -> None:
        self._loss = loss
        self._limits: Limits | None = None
        self.grad_norm: torch.Tensor | None = None
        name = "_get_norm_groups" if stage == 3 else "scaled_global_norm"
        compute = getattr(optimizer, name)

        def asked() -> Any:
            norms = compute()
            if self._limits is None:
                return norms
            groups = torch.stack([torch.as_tensor(norm).float() for norm in (norms if stage == 3 else [norms])])
            norm = torch.linalg.vector_norm(groups)
            finite = bool((groups >= 0).all())  # it says -1 for what is not
            if not finite or not bool(self._limits.exceeded(self._loss().to(norm.device), norm)):
                return norms
            self.grad_norm = norm
            return [-torch.ones_like(norm)] if stage == 3 else -torch.ones_like(norm)

        setattr(optimizer, name, asked)

    def begin(self, limits: Limits | None) -> None:
        """Of the next step."""
        self._limits, self.grad_norm = limits, None
