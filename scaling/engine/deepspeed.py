"""DeepSpeed ZeRO 1-3 behind the engine contract. The only module that imports deepspeed."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from scaling.config import RunConfig
from scaling.engine.base import EvalResult, LossModule, StepResult
from scaling.engine.optim import build_optimizer
from scaling.fragments import Fragment, FragmentReader, Snapshot
from scaling.model import LanguageModel, build_model, initialise
from scaling.model.batch import Batch
from scaling.parallel.grid import Ranks
from scaling.parallel.part import part_of
from scaling.plan.degrees import Layout

_MODULE_PREFIX = "model."
"""What LossModule puts before the model's own parameter names."""


def _import_deepspeed() -> Any:
    # Its log lines are for its developers; errors are raised. The shared-memory CPU collective
    # would be compiled on first use (27-63 s measured); gloo serves without it.
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    import deepspeed
    from deepspeed import ops
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


@contextlib.contextmanager
def _nothing_compiled() -> Iterator[None]:
    """torch.compile as a decorator does nothing: on a function of Muon, which is not ours, it would import Inductor (0.9 s)."""
    before = os.environ.get("TORCHDYNAMO_DISABLE")
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TORCHDYNAMO_DISABLE"]
        else:
            os.environ["TORCHDYNAMO_DISABLE"] = before


def deepspeed_config(config: RunConfig, layout: Layout) -> dict[str, Any]:
    """The run in DeepSpeed's own words. ZeRO's memory_efficient_linear would patch F.linear process-wide: off."""
    zero: dict[str, Any] = {"stage": layout.zero_stage, "memory_efficient_linear": False}
    if layout.zero_stage == 3:
        # Every parameter is partitioned: those kept whole would need a copy of their own on loading.
        zero["stage3_param_persistence_threshold"] = 0
    return {
        "train_batch_size": config.train.global_batch_size,
        "train_micro_batch_size_per_gpu": layout.micro_batch_size,
        "gradient_accumulation_steps": layout.grad_accum_steps,
        "gradient_clipping": config.optim.grad_clip,
        "zero_optimization": zero,
        "bf16": {"enabled": config.dtype == "bf16"},
        "steps_per_print": 10**9,
    }


class DeepSpeedEngine:
    """ZeRO 1-3 on `ranks.dp` data-parallel ranks. In bf16 the weights are bf16, masters and moments fp32."""

    def __init__(self, config: RunConfig, layout: Layout, ranks: Ranks, device: torch.device) -> None:
        deepspeed = _import_deepspeed()
        # DeepSpeed reads its place from the environment; its local rank is an index among the GPUs that this process sees.
        local_rank = device.index if device.type == "cuda" else ranks.local_rank
        os.environ.update(RANK=str(ranks.rank), WORLD_SIZE=str(ranks.world_size), LOCAL_RANK=str(local_rank))
        self.device = device
        self._config = config
        self._dp = ranks.dp
        self._rank = ranks.rank
        self._stage = layout.zero_stage
        self.model = build_model(config, device=device)
        initialise(self.model, config.train.seed)
        self.model.set_activation_checkpointing(layout.block_checkpointing)
        if config.train.compile:
            self.model.compile_blocks()
        module = LossModule(self.model)
        optimizer = build_optimizer(config, self.model)
        deepspeed.init_distributed(dist_backend=dist.get_backend(), dist_init_required=False)
        with _nothing_compiled():
            self._engine, _, _, _ = deepspeed.initialize(
                model=module, optimizer=optimizer, config=deepspeed_config(config, layout), dist_init_required=False
            )
        self._fused = bool(optimizer.param_groups[0].get("fused"))

    def step(self, micro_batches: Sequence[Batch], lr: float) -> StepResult:
        engine = self._engine
        engine.train()
        n_targets = torch.tensor([float(sum(batch.n_targets for batch in micro_batches))], device=self.device)
        dist.all_reduce(n_targets)
        loss = torch.zeros(1, device=self.device)
        for group in engine.optimizer.param_groups:
            group["lr"] = lr
        skipped = engine.skipped_steps
        for batch in micro_batches:
            batch = batch.to(self.device)
            nats, _, objective = engine(*batch)
            # ZeRO averages gradients over the ranks; the sum over all targets wants the sum.
            engine.backward(objective / n_targets[0] * self._dp, scale_wrt_gas=False)
            loss += nats.detach() / n_targets[0]
            engine.step()
        dist.all_reduce(loss)
        grad_norm = torch.as_tensor(engine.get_global_grad_norm(), dtype=torch.float32, device=self.device)
        return StepResult(loss[0], grad_norm, torch.tensor(float(engine.skipped_steps - skipped), device=self.device))

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> EvalResult:
        self._engine.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        for batch in batches:
            batch = batch.to(self.device)
            nats, count, _ = self._engine(*batch)
            sums[0] += nats.double()
            sums[1] += count
        dist.all_reduce(sums)
        return EvalResult(float(sums[0]), int(sums[1]))

    def whole_model(self) -> LanguageModel:
        """Under ZeRO-3 a copy of the gathered weights, without DeepSpeed's hooks: those let go of a weight after its module's
        own forward, and a tied head wants it later."""
        if self._stage != 3:
            return self.model
        from deepspeed.runtime.zero import GatheredParameters

        whole = build_model(self._config, device=self.device)
        targets = dict(whole.named_parameters())
        for name, param in self._named_parameters():
            with GatheredParameters([param]), torch.no_grad():
                targets[name].copy_(param)
        return whole

    def _named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        for name, param in self._engine.module.named_parameters():
            yield name.removeprefix(_MODULE_PREFIX), param

    def _base_optimizer(self) -> torch.optim.Optimizer:
        return self._engine.optimizer.optimizer

    def _flat_groups(self) -> list[torch.Tensor]:
        """This rank's flat fp32 partitions, on which the base optimiser works."""
        zero = self._engine.optimizer
        return zero.fp32_partitioned_groups_flat if self._stage == 3 else zero.single_partition_of_fp32_groups

    def _optimizer_step(self) -> int:
        states = self._base_optimizer().state
        steps = {int(states[flat]["step"]) for flat in self._flat_groups() if "step" in states.get(flat, {})}
        assert len(steps) <= 1, steps
        return steps.pop() if steps else 0

    def _views(self, name: str, param: torch.nn.Parameter) -> tuple[int, dict[str, torch.Tensor]] | None:
        """Where this rank's part of `param` starts, and fp32 views of it: master weights and moments; None if it has none."""
        if self._stage == 3:
            flat, offset, start, numel = self._stage3_place(param)
        else:
            mapping = param._hp_mapping  # type: ignore[attr-defined]
            if mapping is None:
                return None
            flat = self._engine.optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
            offset, start, numel = (
                mapping.hp_fragment_address.start, mapping.lp_fragment_address.start, mapping.lp_fragment_address.numel
            )  # fmt: skip
        if numel <= 0:
            return None
        state = self._base_optimizer().state[flat]
        if not state:
            step = torch.zeros((), device=self.device if self._fused else "cpu")
            state.update(step=step, exp_avg=torch.zeros_like(flat), exp_avg_sq=torch.zeros_like(flat))
        return start, {"param": flat.data.narrow(0, offset, numel)} | {
            kind: state[kind].narrow(0, offset, numel) for kind in ("exp_avg", "exp_avg_sq")
        }

    def _stage3_place(self, param: torch.nn.Parameter) -> tuple[torch.Tensor, int, int, int]:
        zero = self._engine.optimizer
        group, offset, width = zero.grad_position[zero.get_param_id(param)]
        start = self._rank * width
        return zero.fp32_partitioned_groups_flat[group], int(offset), start, min(width, param.ds_numel - start)  # type: ignore[attr-defined]

    def _shape(self, param: torch.nn.Parameter) -> tuple[int, ...]:
        return tuple(param.ds_shape if self._stage == 3 else param.shape)  # type: ignore[attr-defined]

    def snapshot(self) -> Snapshot:
        def fragments() -> Iterator[Fragment]:
            for name, param in self._named_parameters():
                views = self._views(name, param)
                if views is not None:
                    yield Fragment(name, part_of(param), views[0], views[1])

        return Snapshot.of(fragments(), optimizer_step=self._optimizer_step())

    @torch.no_grad()
    def load(self, directory: Path) -> None:
        reader = FragmentReader(directory)
        reader.check({name: self._shape(param) for name, param in self._named_parameters()})
        for name, param in self._named_parameters():
            views = self._views(name, param)
            if views is None:
                continue
            start, tensors = views
            for kind, view in tensors.items():
                view.copy_(reader.read(kind, name, part_of(param), start, view.numel()))
            if self._stage == 3:
                param.ds_tensor.data.view(-1)[: tensors["param"].numel()].copy_(tensors["param"])  # type: ignore[attr-defined]
        for flat in self._flat_groups():
            state = self._base_optimizer().state[flat]
            state["step"] = torch.tensor(float(reader.optimizer_step), device=self.device if self._fused else "cpu")
        if self._stage != 3:
            self._engine.optimizer.update_lp_params()
