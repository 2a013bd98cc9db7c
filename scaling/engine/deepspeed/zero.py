"""ZeRO 1-3 with tensor and context parallel layers."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from scaling.batch import Batch
from scaling.checkpoint.fragments import Fragment, FragmentReader, Snapshot
from scaling.config.run_config import RunConfig
from scaling.engine.base import EvalResult, Limits, LossModule, StepResult
from scaling.engine.deepspeed.library import import_deepspeed, nothing_compiled
from scaling.engine.deepspeed.partition import Mpu, Sharder
from scaling.engine.deepspeed.refusal import Refusal
from scaling.engine.deepspeed.settings import deepspeed_config
from scaling.engine.deepspeed.zero_states import ZeroStates
from scaling.engine.optimizer import build_optimizer, set_rate
from scaling.engine.rank_model import RankModel
from scaling.model import LanguageModel
from scaling.parallel.grid import Ranks
from scaling.parallel.groups import Groups
from scaling.parallel.part import part_of
from scaling.planner.layout import Layout


class DeepSpeedEngine:
    """ZeRO over the ranks that hold the same layers and parts. In bf16 the weights are bf16, master
    weights and moments fp32."""

    def __init__(
        self, config: RunConfig, layout: Layout, ranks: Ranks, device: torch.device
    ) -> None:
        deepspeed = import_deepspeed()
        # DeepSpeed reads the ranks from the environment; its local rank is an index among the GPUs
        # that this process sees.
        local_rank = device.index if device.type == "cuda" else ranks.local_rank
        os.environ.update(
            RANK=str(ranks.rank), WORLD_SIZE=str(ranks.world_size), LOCAL_RANK=str(local_rank)
        )
        self.device, self._layout, self._ranks = device, layout, ranks
        deepspeed.init_distributed(dist_backend=dist.get_backend(), dist_init_required=False)
        groups = Groups.of(ranks)
        mpu = Mpu(ranks, groups) if ranks.tp > 1 and ranks.pp == 1 else None
        settings = deepspeed_config(config, layout)
        partition = (
            Sharder(settings, layout, mpu, self._dtype(config)) if layout.zero_stage == 3 else None
        )
        self._held = RankModel.build(config, layout, ranks, groups, device, partition)
        optimizer = build_optimizer(config, self.model)
        module = self._module()
        with nothing_compiled(), contextlib.redirect_stdout(io.StringIO()):
            self._engine, _, _, _ = deepspeed.initialize(
                model=module,
                optimizer=optimizer,
                config=settings,
                dist_init_required=False,
                mpu=mpu,
            )
        self._states = ZeroStates(self._engine, layout.zero_stage, ranks.replica)
        self._refusal = Refusal(self._engine.optimizer, layout.zero_stage, self._loss)

    @staticmethod
    def _dtype(config: RunConfig) -> torch.dtype:
        return torch.bfloat16 if config.dtype == "bf16" else torch.float32

    @property
    def model(self) -> LanguageModel:
        """The layers and parts of parameters that this rank holds."""
        return self._held.model

    def _module(self) -> nn.Module:
        """The module that DeepSpeed runs."""
        return LossModule(self.model)

    def step(
        self, micro_batches: Sequence[Batch], lr: float, limits: Limits | None = None
    ) -> StepResult:
        engine = self._engine
        self._refusal.begin(limits)
        set_rate(engine.optimizer.param_groups, lr)
        skipped = engine.skipped_steps
        loss = self._train(
            [batch.to(self.device) for batch in micro_batches], self._n_targets(micro_batches)
        )
        refused = self._refusal.grad_norm
        norm = engine.get_global_grad_norm() if refused is None else refused
        grad_norm = torch.as_tensor(norm, dtype=torch.float32, device=self.device)
        return StepResult(
            loss, grad_norm, torch.tensor(float(engine.skipped_steps - skipped), device=self.device)
        )

    def _n_targets(self, micro_batches: Sequence[Batch]) -> torch.Tensor:
        """Targets of the global batch, each counted once: context parallel ranks have the same
        sequences."""
        n_targets = torch.tensor(
            float(sum(batch.n_targets for batch in micro_batches)), device=self.device
        )
        return self._over_replicas(n_targets) / self._ranks.cp

    def _over_replicas(self, x: torch.Tensor) -> torch.Tensor:
        if self._held.groups.replicas is not None:
            dist.all_reduce(x, group=self._held.groups.replicas)
        return x

    def _train(self, micro_batches: Sequence[Batch], n_targets: torch.Tensor) -> torch.Tensor:
        """Run forward, backward and update; the step's loss."""
        self._engine.train()
        self._own_loss = torch.zeros((), device=self.device)
        for batch in micro_batches:
            nats, _, objective = self._engine(*batch)
            # ZeRO averages gradients over the ranks; the mean over all targets needs their sum.
            self._engine.backward(objective / n_targets * self._ranks.replicas, scale_wrt_gas=False)
            self._own_loss += nats.detach() / n_targets
            self._engine.step()  # updates the weights after the last micro-batch only
        return self._loss()

    def _loss(self) -> torch.Tensor:
        """Loss of the step's micro-batches, over all ranks."""
        return self._over_replicas(self._own_loss.clone())

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> EvalResult:
        self._engine.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        for batch in batches:
            nats, count, _ = self._engine(*batch.to(self.device))
            sums[0] += nats.double()
            sums[1] += count
        self._over_replicas(sums)
        return EvalResult(float(sums[0]), int(sums[1]))

    def whole_model(self) -> LanguageModel:
        """The model itself where this rank holds all of it, else a gathered copy.

        ZeRO-3's own hooks would not do: they release a weight after its module's forward, and a
        tied head needs it later.
        """
        if self._layout.zero_stage != 3:
            if self._ranks.tp * self._ranks.pp == 1:
                return self.model
            return self._held.whole_model(
                {name: parameter.detach() for name, parameter in self._held.owned()}
            )
        from deepspeed.runtime.zero import GatheredParameters

        weights, owned = {}, {name for name, _ in self._held.owned()}
        for name, param in self.model.named_parameters():
            with GatheredParameters([param]):
                if name in owned:
                    weights[name] = param.detach().clone()
        return self._held.whole_model(weights)

    def snapshot(self, reuse: Snapshot | None = None) -> Snapshot:
        def fragments() -> Iterator[Fragment]:
            for name, param in self._held.owned():
                views = self._states.views(param)
                if views is not None:
                    yield Fragment(name, part_of(param), views[0], views[1])

        return Snapshot.of(fragments(), optimizer_step=self._states.optimizer_step, reuse=reuse)

    @torch.no_grad()
    def load(self, directory: Path) -> None:
        reader = FragmentReader(directory)
        reader.check(self._held.shapes)
        for name, param in self.model.named_parameters():
            views = self._states.views(param)
            if views is None:
                continue
            start, tensors = views
            for kind, view in tensors.items():
                view.copy_(reader.read(kind, name, part_of(param), start, view.numel()))
            self._states.written(param, tensors["param"])
        self._states.optimizer_step = reader.optimizer_step
        self._states.all_written()

    def close(self) -> None:
        """Remove hooks in autograd's graph, which Python's collector does not see and which would
        keep the engine alive. ZeRO-3 keeps some memory even so (0.19.8), so its process should
        end."""
        self._engine.destroy()
