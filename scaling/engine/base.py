"""The engine contract: all that the training loop knows about how a step is executed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from scaling.batch import Batch, Loss
from scaling.checkpoint.fragments import Snapshot
from scaling.model.base import LanguageModel


@dataclass(frozen=True)
class Limits:
    """Upper limits of a step's loss and of its gradient norm before clipping. An update beyond
    either is left out."""

    loss: float
    grad_norm: float

    def exceeded(self, loss: torch.Tensor, grad_norm: torch.Tensor) -> torch.Tensor:
        return (loss > self.loss) | (grad_norm > self.grad_norm)


@dataclass(frozen=True)
class StepResult:
    """The result of one optimiser step: 0-dim fp32 tensors on the engine's device, equal on every
    rank.

    loss: mean nats per target over the global batch, before the update. grad_norm: global L2 norm
    before clipping. skipped: 1 where the update was left out because the loss or the gradients were
    not finite, or a limit was exceeded; else 0.
    """

    loss: torch.Tensor
    grad_norm: torch.Tensor
    skipped: torch.Tensor


@dataclass(frozen=True)
class EvalResult:
    """Sums over the held-out targets of every rank: nats, and targets scored."""

    nats: float
    n_targets: int

    @property
    def loss(self) -> float:
        """Mean nats per target."""
        return self.nats / self.n_targets


class Engine(Protocol):
    """What one rank holds of a model, its optimiser, and the collectives between the ranks.

    Every method is collective: all ranks call it, in the same order.
    """

    device: torch.device

    @property
    def model(self) -> LanguageModel:
        """The layers and parts of parameters that this rank holds."""
        ...

    def step(
        self, micro_batches: Sequence[Batch], lr: float, limits: Limits | None = None
    ) -> StepResult:
        """Make one optimiser update from this rank's micro-batches of the global batch, at learning
        rate `lr`, unless it exceeds `limits`."""
        ...

    def evaluate(self, batches: Iterable[Batch]) -> EvalResult:
        """Sum the loss over this rank's batches (each rank has equally many) and over the ranks,
        without gradients."""
        ...

    def whole_model(self) -> LanguageModel:
        """The model as one module of ordinary weights, for generation; a copy where weights are
        sharded over the ranks."""
        ...

    def snapshot(self, reuse: Snapshot | None = None) -> Snapshot:
        """This rank's fragments of the weights and optimiser states, copied to the host's memory.
        reuse: an earlier snapshot, whose memory is overwritten."""
        ...

    def load(self, directory: Path) -> None:
        """Load weights and optimiser states from `directory`, whatever layout wrote them. Raises
        CheckpointError."""
        ...

    def close(self) -> None:
        """Release all that would stay with the process. The engine cannot be used afterwards."""
        ...


class LossModule(nn.Module):
    """A model whose forward gives its loss. It takes the tensors of a Batch one by one, since
    wrappers such as DistributedDataParallel look at the inputs."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, *tensors: torch.Tensor | None) -> Loss:
        return self.model.loss(Batch._make(tensors))
