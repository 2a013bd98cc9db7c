"""DeepSpeed ZeRO 1-3, with tensor and context parallel layers, behind the engine contract."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from scaling.batch import Batch
from scaling.checkpoint.fragments import Fragment, FragmentReader, Snapshot
from scaling.config.run_config import RunConfig
from scaling.engine.base import EvalResult, Limits, LossModule, StepResult
from scaling.engine.optimizer import build_optimizer, set_rate
from scaling.engine.rank_model import Share
from scaling.engine.refusal import Refusal
from scaling.engine.zero_states import ZeroStates
from scaling.model import LanguageModel
from scaling.parallel.grid import Ranks
from scaling.parallel.groups import Groups
from scaling.parallel.part import part_of
from scaling.planner.cost.counts import count
from scaling.planner.cost.setting import REDUCE_BUCKET
from scaling.planner.layout import Layout


def import_deepspeed() -> Any:
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
    """torch.compile as a decorator does nothing: on a function of Muon, which is not ours, it would
    import Inductor (0.9 s)."""
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
    """The run in DeepSpeed's own words. ZeRO's memory_efficient_linear would patch F.linear
    process-wide: off.

    DeepSpeed's data-parallel ranks are ours and their context parallel ones: all that sum
    gradients of the same weights.
    """
    zero: dict[str, Any] = {"stage": layout.zero_stage, "memory_efficient_linear": False}
    # Each gradient is reduced to the rank that owns it: P elements. By default all ranks get it and
    # most forget it: 2 P.
    zero["use_multi_rank_bucket_allreduce"] = False
    # It makes two buffers of this size, however small a model and few its ranks.
    zero["reduce_bucket_size"] = min(
        REDUCE_BUCKET, count(config).n_params // (layout.tp * layout.pp)
    )
    # the pipeline sends gradients when all micro-batches are through
    zero["overlap_comm"] = layout.pp == 1
    if layout.zero_stage == 3:
        # Every parameter is partitioned: those kept whole would need a copy of their own on
        # loading.
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
        # micro-batches' gradients are added in fp32, and those of tied weights with them
        if config.dtype == "bf16":
            out["data_types"] = {"grad_accum_dtype": "fp32"}
    return out


class _Mpu:
    """Tells DeepSpeed which ranks sum gradients, and which together make up a gradient norm."""

    def __init__(self, ranks: Ranks, groups: Groups) -> None:
        self._ranks, self._groups = ranks, groups

    def get_data_parallel_group(self) -> Any:
        return self._groups.replicas or self._groups.single

    def get_data_parallel_world_size(self) -> int:
        return self._ranks.replicas

    def get_data_parallel_rank(self) -> int:
        return self._ranks.replica

    def get_model_parallel_group(self) -> Any:
        return self._groups.tp

    get_tensor_model_parallel_group = get_model_parallel_group

    def get_model_parallel_world_size(self) -> int:
        return self._ranks.tp

    get_tensor_model_parallel_world_size = get_model_parallel_world_size

    def get_model_parallel_rank(self) -> int:
        return self._ranks.tp_rank

    get_tensor_model_parallel_rank = get_model_parallel_rank


class _Sharder:
    """Deals a module's own parameters out among the ranks of ZeRO-3, so that no rank ever holds all
    of a model."""

    def __init__(
        self, settings: dict[str, Any], layout: Layout, mpu: _Mpu | None, dtype: torch.dtype
    ) -> None:
        self._settings, self._mpu, self._dtype = settings, mpu, dtype
        self._offloaded = layout.offload == "parameters"
        self._first: Any = None

    def __call__(self, module: nn.Module) -> None:
        # DeepSpeed leaves those that are dealt out in the dtype they have
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.to(self._dtype)
        if self._first is not None:
            self._first.convert_to_zero_parameters(
                param_list=list(module.parameters(recurse=False))
            )
            return
        from deepspeed.runtime.zero import Init

        group = None if self._mpu is None else self._mpu.get_data_parallel_group()
        remote = "cpu" if self._offloaded else None
        Init(
            module,
            data_parallel_group=group,
            config_dict_or_path=self._settings,
            mpu=self._mpu,
            mem_efficient_linear=False,
            remote_device=remote,
        )
        self._first = next(module.parameters(recurse=False))


class DeepSpeedEngine:
    """ZeRO over the ranks that hold the same part of a model. In bf16 the weights are bf16, masters
    and moments fp32."""

    def __init__(
        self, config: RunConfig, layout: Layout, ranks: Ranks, device: torch.device
    ) -> None:
        deepspeed = import_deepspeed()
        # DeepSpeed reads its place from the environment; its local rank is an index among the GPUs
        # that this process sees.
        local_rank = device.index if device.type == "cuda" else ranks.local_rank
        os.environ.update(
            RANK=str(ranks.rank), WORLD_SIZE=str(ranks.world_size), LOCAL_RANK=str(local_rank)
        )
        self.device, self._layout, self._ranks = device, layout, ranks
        deepspeed.init_distributed(dist_backend=dist.get_backend(), dist_init_required=False)
        groups = Groups.of(ranks)
        mpu = _Mpu(ranks, groups) if ranks.tp > 1 and ranks.pp == 1 else None
        settings = deepspeed_config(config, layout)
        deal_out = (
            _Sharder(settings, layout, mpu, self._dtype(config)) if layout.zero_stage == 3 else None
        )
        self._share = Share.build(config, layout, ranks, groups, device, deal_out)
        optimizer = build_optimizer(config, self.model)
        module = self._module()
        with _nothing_compiled(), contextlib.redirect_stdout(io.StringIO()):
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
        """This rank's share."""
        return self._share.model

    def _module(self) -> nn.Module:
        """What DeepSpeed is given."""
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
        """Of the global batch; context parallel ranks have the same sequences."""
        n_targets = torch.tensor(
            float(sum(batch.n_targets for batch in micro_batches)), device=self.device
        )
        return self._over_replicas(n_targets) / self._ranks.cp

    def _over_replicas(self, x: torch.Tensor) -> torch.Tensor:
        if self._share.groups.replicas is not None:
            dist.all_reduce(x, group=self._share.groups.replicas)
        return x

    def _train(self, micro_batches: Sequence[Batch], n_targets: torch.Tensor) -> torch.Tensor:
        """Forward, backward and update; the loss."""
        self._engine.train()
        self._own_loss = torch.zeros((), device=self.device)
        for batch in micro_batches:
            nats, _, objective = self._engine(*batch)
            # ZeRO averages gradients over the ranks; the sum over all targets wants the sum.
            self._engine.backward(objective / n_targets * self._ranks.replicas, scale_wrt_gas=False)
            self._own_loss += nats.detach() / n_targets
            self._engine.step()
        return self._loss()

    def _loss(self) -> torch.Tensor:
        """Of the step's micro-batches, over all ranks."""
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
        """Where weights are shared out, a copy of them all. Under ZeRO-3 without DeepSpeed's hooks,
        for those let go of a weight after its module's own forward, and a tied head wants it
        later."""
        if self._layout.zero_stage != 3:
            if self._ranks.tp * self._ranks.pp == 1:
                return self.model
            return self._share.whole_model(
                {name: parameter.detach() for name, parameter in self._share.owned()}
            )
        from deepspeed.runtime.zero import GatheredParameters

        weights, owned = {}, {name for name, _ in self._share.owned()}
        for name, param in self.model.named_parameters():
            with GatheredParameters([param]):
                if name in owned:
                    weights[name] = param.detach().clone()
        return self._share.whole_model(weights)

    def snapshot(self, reuse: Snapshot | None = None) -> Snapshot:
        def fragments() -> Iterator[Fragment]:
            for name, param in self._share.owned():
                views = self._states.views(param)
                if views is not None:
                    yield Fragment(name, part_of(param), views[0], views[1])

        return Snapshot.of(fragments(), optimizer_step=self._states.optimizer_step, reuse=reuse)

    @torch.no_grad()
    def load(self, directory: Path) -> None:
        reader = FragmentReader(directory)
        reader.check(self._share.shapes)
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
        """Without it hooks in autograd's graph, of which Python's collector sees nothing, would
        keep all of the engine. Of ZeRO-3 something stays even so (0.19.8): a process that is to
        live on should not."""
        self._engine.destroy()


def forget_layout() -> None:
    """Put back what DeepSpeed keeps process-wide about a layout and its process groups, which are
    gone by now."""
    from deepspeed.comm import comm
    from deepspeed.module_inject.layers import set_autotp_mode
    from deepspeed.utils import groups

    set_autotp_mode(False)
    comm.cdb = None
    for name in (
        "mpu",
        "mesh_device",
        "_WORLD_GROUP",
        "_DATA_PARALLEL_GROUP",
        "_MODEL_PARALLEL_GROUP",
        "_TENSOR_MODEL_PARALLEL_GROUP",
        "_ZERO_PARAM_INTRA_PARALLEL_GROUP",
    ):
        setattr(groups, name, None)
