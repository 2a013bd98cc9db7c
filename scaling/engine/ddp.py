"""Data parallelism in plain PyTorch: the reference engine under DistributedDataParallel, the whole
model on each rank."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from scaling.batch import Batch
from scaling.checkpoint.fragments import Snapshot
from scaling.config.run_config import RunConfig
from scaling.engine.base import EvalResult, Limits, LossModule, StepResult
from scaling.engine.reference import ReferenceEngine
from scaling.parallel.grid import Ranks
from scaling.planner.layout import Layout


class DDPEngine(ReferenceEngine):
    """Sums gradients over the ranks while backward still runs (Li et al. 2020, arXiv:2006.15704).
    Each rank holds all optimiser states."""

    def __init__(
        self, config: RunConfig, layout: Layout, ranks: Ranks, device: torch.device
    ) -> None:
        super().__init__(config, layout, device)
        self._ranks = ranks
        devices = [device.index] if device.type == "cuda" else None
        # Experts that no token chose, and a head that a batch does not use, have no gradient.
        unused = config.model.n_experts > 1 or config.objective.sentence_order
        self._ddp = DistributedDataParallel(
            LossModule(self.model),
            device_ids=devices,
            find_unused_parameters=unused,
            gradient_as_bucket_view=True,
        )

    def step(
        self, micro_batches: Sequence[Batch], lr: float, limits: Limits | None = None
    ) -> StepResult:
        self.model.train()
        n_targets = torch.tensor(
            float(sum(batch.n_targets for batch in micro_batches)), device=self.device
        )
        dist.all_reduce(n_targets)
        loss = torch.zeros((), device=self.device)
        for number, batch in enumerate(micro_batches):
            last = number == len(micro_batches) - 1
            # Only the last backward of a step exchanges gradients.
            with nullcontext() if last else self._ddp.no_sync():
                with self._precision():
                    nats, _, objective = self._ddp(*batch.to(self.device))
                # DDP averages gradients over the ranks; the mean over all targets needs their sum.
                (objective / n_targets * self._ranks.dp).backward()
            loss += nats.detach() / n_targets
        dist.all_reduce(loss)
        return self._update(loss, lr, limits)

    def evaluate(self, batches: Iterable[Batch]) -> EvalResult:
        own = super().evaluate(batches)
        sums = torch.tensor([own.nats, own.n_targets], dtype=torch.float64, device=self.device)
        dist.all_reduce(sums)
        return EvalResult(float(sums[0]), int(sums[1]))

    def snapshot(self, reuse: Snapshot | None = None) -> Snapshot:
        """Everything from the first rank and nothing from the others, since all hold the same."""
        return (
            super().snapshot(reuse)
            if self._ranks.is_first
            else Snapshot([], self._optimizer_step())
        )
