"""DeepSpeed's pipeline engine, with ZeRO 1 and tensor parallel layers.

`scaling.planner.stages` assigns blocks to stages, and each stage runs the blocks of its rank's
model. One tensor passes between two stages (`Flow.packed`). Tokens, targets and documents do not
pass, since every rank reads the batch itself.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from scaling.batch import IGNORED, Batch
from scaling.engine.base import EvalResult
from scaling.engine.deepspeed.library import import_deepspeed
from scaling.engine.deepspeed.zero import DeepSpeedEngine
from scaling.engine.rank_model import RankModel
from scaling.model.base import Flow
from scaling.parallel.grid import Axis


class Stage(nn.Module):
    """One stage of a model: a packed flow in, and a packed flow out or, at the end, the objective.

    The schedule runs the forwards of micro-batches in their order, so counting them identifies the
    batch.
    """

    def __init__(self, held: RankModel, blocks: tuple[int, int]) -> None:
        super().__init__()
        self.model, self.blocks = held.model, blocks
        self.begin([], 1.0)

    def begin(self, batches: Sequence[Batch], scale: Tensor | float) -> None:
        """Set the micro-batches to come, and the factor on the objective of each."""
        self.batches, self.scale, self.n_done = batches, scale, 0
        self.nats = torch.zeros((), dtype=torch.float64)
        self.n_targets = torch.zeros((), dtype=torch.int64)

    @property
    def is_last(self) -> bool:
        return self.blocks[1] == self.model.n_blocks

    def forward(self, packed: Tensor) -> Tensor:
        batch, model, (first, last) = self.batches[self.n_done], self.model, self.blocks
        self.n_done += 1
        flow = model.begin(batch) if first == 0 else self._unpacked(packed, batch)
        flow = model.through(flow, batch, first, last)
        if not self.is_last:
            return flow.packed()
        nats, n_targets, objective = model.finish(flow, batch)
        self.nats = self.nats.to(nats.device) + nats.detach().double()
        self.n_targets = self.n_targets.to(nats.device) + n_targets
        return objective * self.scale

    def _unpacked(self, packed: Tensor, batch: Batch) -> Flow:
        n_source = None
        if self.model.crosses(self.blocks[0]):
            assert batch.source_BU is not None
            n_source = batch.source_BU.shape[1]
        return Flow.unpacked(packed, n_source, balanced=self.model.config.n_experts > 1)


def _pipeline_module(held: RankModel) -> nn.Module:
    """DeepSpeed's module with one layer per stage; each rank builds its own stages."""
    import_deepspeed()
    from deepspeed.pipe import DualPipeVModule, LayerSpec, PipelineModule
    from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology

    base: Any = DualPipeVModule if held.layout.is_dualpipev else PipelineModule

    class Staged(base):
        """Names the weights that several stages hold by our names, not as layers of DeepSpeed's
        kind."""

        def _index_tied_modules(self) -> dict[str, Any]:
            self.shared: list[tuple[nn.Parameter, Any]] = []
            groups = _groups_of_ties(held)
            for parameter, pp_ranks in held.shared():
                vars(parameter)["ds_pipe_replicated"] = pp_ranks[0] != held.ranks.pp_rank
                self.shared.append((parameter, groups[tuple(pp_ranks)]))
            return {}

        def get_tied_weights_and_groups(self) -> list[tuple[nn.Parameter, Any]]:
            return self.shared

    ranks = held.ranks
    topology = PipeModelDataParallelTopology(num_pp=ranks.pp, num_mp=ranks.tp, num_dp=ranks.dp)
    layers = [LayerSpec(Stage, held, blocks) for blocks in held.blocks]
    with contextlib.redirect_stdout(io.StringIO()):
        return Staged(layers, topology=topology, partition_method="uniform", loss_fn=None)


def _groups_of_ties(held: RankModel) -> dict[tuple[int, ...], Any]:
    """The process group of each set of pipeline ranks that hold one weight, along this rank's
    pipeline. Collective over the world."""
    ranks, mine = held.ranks, {}
    for pp_ranks in sorted(
        {tuple(pp_ranks) for pp_ranks in held.pp_ranks.values() if len(pp_ranks) > 1}
    ):
        for members in ranks.axis(Axis.PP):
            chosen = [members[pp_rank] for pp_rank in pp_ranks]
            group = dist.new_group(chosen)
            if ranks.rank in chosen:
                mine[pp_ranks] = group
    return mine


class PipelineEngine(DeepSpeedEngine):
    """Passes one micro-batch per accumulation step through the stages, in the order of the layout's
    `pp_schedule`.

    That is 1f1b (Narayanan et al. 2019, arXiv:1806.03377) or dualpipev (DeepSeek-AI 2024,
    arXiv:2412.19437, section 3.2.1, cut in half). In dualpipev micro-batches come back: the first
    rank holds the first stage and the last one, which computes the loss.
    """

    def _module(self) -> nn.Module:
        module = _pipeline_module(self._held)
        self._stages = [m for m in module.modules() if isinstance(m, Stage)]
        self._shape: tuple[int, ...] | None = None
        return module

    def _train(self, micro_batches: Sequence[Batch], n_targets: Tensor) -> Tensor:
        # DeepSpeed divides by the number of micro-batches and averages over the ranks; the mean
        # over all targets needs neither.
        self._begin(micro_batches, self._ranks.replicas * len(micro_batches) / n_targets)
        self._divisor = n_targets
        self._engine.train_batch(_placeholders())
        return self._loss()

    def _loss(self) -> Tensor:
        nats, _ = self._summed()
        return nats.float() / self._divisor

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> EvalResult:
        """Sum the loss over the batches. DualPipeV takes as many at a time as in training, since
        its engine (0.19.8) keeps that many buffers; blank batches without targets fill them up."""
        moved = [batch.to(self.device) for batch in batches]
        size = self._layout.grad_accum_steps if self._layout.is_dualpipev else len(moved)
        blank = moved[-1]._replace(targets_BT=torch.full_like(moved[-1].targets_BT, IGNORED))
        moved += [blank] * (-len(moved) % size)
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        for start in range(0, len(moved), size):
            self._begin(moved[start : start + size], 1.0)
            self._engine.eval_batch(
                _placeholders(), compute_loss=False, reduce_output=None, num_micro_batches=size
            )
            sums += self._summed()
        return EvalResult(float(sums[0]), int(sums[1]))

    def _summed(self) -> Tensor:
        """(nats, targets) of all ranks; one rank of each last stage adds them, so that they are
        counted once."""
        last = next((stage for stage in self._stages if stage.is_last), None)
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        if last is not None and self._ranks.tp_rank == 0:
            sums = torch.stack([last.nats, last.n_targets.double()]).to(self.device)
        dist.all_reduce(sums)
        return sums

    def _begin(self, batches: Sequence[Batch], scale: Tensor | float) -> None:
        """Set the micro-batches to come. Buffers are kept while shapes stay the same."""
        for stage in self._stages:
            stage.begin(batches, scale)
        shape = tuple(batches[0].tokens_BT.shape)
        if shape != self._shape:
            self._engine.reset_activation_shape()
            self._shape = shape


class _Placeholders:
    def __next__(self) -> tuple[Tensor, Tensor]:
        return torch.zeros(1), torch.zeros(1)

    def __iter__(self) -> _Placeholders:
        return self


def _placeholders() -> _Placeholders:
    """An iterator of inputs and labels, which DeepSpeed requires; a stage has its micro-batches
    already."""
    return _Placeholders()
