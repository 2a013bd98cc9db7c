"""Makes DeepSpeed's ZeRO leave out updates beyond limits or without a finite loss, by the way in
which it leaves out those whose gradients are not finite."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from scaling.engine.base import Limits


class Refusal:
    """Replaces the method of a ZeRO optimiser that computes the gradient norm, between backward and
    update.

    loss: gives the loss of the step whose backward has ended, equal on every rank; a collective.
    grad_norm: norm of the update that was refused in this step, which DeepSpeed itself reports as
    infinite; None where none was.
    """

    def __init__(self, optimizer: Any, stage: int, loss: Callable[[], torch.Tensor]) -> None:
        self._loss = loss
        self._limits: Limits | None = None
        self.grad_norm: torch.Tensor | None = None
        if stage == 3:
            self._replace(optimizer, "_get_norm_groups", self._at_stage_3)
        elif hasattr(optimizer, "scaled_global_norm"):
            self._replace(optimizer, "scaled_global_norm", self._at_stage_1_or_2)
        else:
            self._replace(optimizer, "get_grads_for_norm", self._of_bf16)

    def _replace(self, optimizer: Any, name: str, asked: Callable[..., Any]) -> None:
        setattr(optimizer, name, functools.partial(asked, optimizer, getattr(optimizer, name)))

    def _at_stage_3(self, _: Any, compute: Callable[[], Any]) -> Any:
        norms = compute()
        groups = torch.stack([torch.as_tensor(norm).float() for norm in norms])
        finite = bool((groups >= 0).all())  # DeepSpeed's norm of what is not finite is -1
        return (
            [-torch.ones_like(groups[0])]
            if finite and self._refuses(torch.linalg.vector_norm(groups))
            else norms
        )

    def _at_stage_1_or_2(self, _: Any, compute: Callable[[], Any]) -> Any:
        norm = torch.as_tensor(compute()).float()
        return -torch.ones_like(norm) if norm >= 0 and self._refuses(norm) else norm

    def _of_bf16(
        self, optimizer: Any, compute: Callable[..., Any], for_clipping: bool = False
    ) -> Any:
        """The optimiser of pipelines in bf16 computes the norm of the gradients that this gives."""
        if for_clipping:
            return compute(for_clipping=True)
        grads, of_experts = compute()
        if self._limits is None and bool(torch.isfinite(self._loss())):
            return grads, of_experts  # the norm need not be computed here
        from deepspeed.runtime.utils import get_global_norm_of_tensors

        norm = torch.as_tensor(
            get_global_norm_of_tensors(grads, mpu=optimizer.mpu, norm_type=optimizer.norm_type)
        ).float()
        refused = bool(torch.isfinite(norm)) and self._refuses(norm)
        # One infinite gradient makes the norm infinite, and DeepSpeed skips the update.
        return [
            torch.full_like(grad, torch.inf) for grad in grads[:1]
        ] if refused else grads, of_experts

    def _refuses(self, norm: torch.Tensor) -> bool:
        loss = self._loss().to(norm.device)
        bad = ~torch.isfinite(loss)
        if self._limits is not None:
            bad |= self._limits.exceeded(loss, norm)
        if not bool(bad):
            return False
        self.grad_norm = norm
        return True

    def begin(self, limits: Limits | None) -> None:
        """Set the limits of the next step."""
        self._limits, self.grad_norm = limits, None
