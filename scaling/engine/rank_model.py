"""What one rank holds of a model: its blocks and its parts of parameters, with the process groups
they need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from scaling.config.run_config import RunConfig
from scaling.model import LanguageModel, build_model
from scaling.model.distribute import covered
from scaling.model.initialise import fill
from scaling.model.split import Split
from scaling.parallel.grid import Ranks
from scaling.parallel.groups import Groups
from scaling.parallel.part import part_of
from scaling.planner.layout import Layout
from scaling.planner.stages import stage_bounds
from scaling.weights.initial import given_weights


@dataclass(frozen=True)
class RankModel:
    """What one rank holds of a model, with initial weights.

    blocks    the half-open range of each pipeline stage, those of other ranks too
    shapes    of every parameter of the whole model
    pp_ranks  of every parameter of the whole model, those that hold it: more than one where a
              weight is tied or shared
    """

    config: RunConfig
    layout: Layout
    ranks: Ranks
    shapes: dict[str, tuple[int, ...]]
    groups: Groups
    model: LanguageModel
    blocks: list[tuple[int, int]]
    pp_ranks: dict[str, list[int]]

    @staticmethod
    def build(
        config: RunConfig,
        layout: Layout,
        ranks: Ranks,
        groups: Groups,
        device: torch.device,
        partition: Callable[[nn.Module], None] | None = None,
    ) -> RankModel:
        """Build the rank's model, with the same weights whatever the layout. partition: shards a
        module's own parameters, called as soon as they have their values."""
        sequence, ring = layout.sequence_parallel and layout.tp > 1, layout.cp_attention == "ring"
        split = Split(groups.tp, groups.cp, sequence, ring)
        blocks = stage_bounds(config, layout.n_stages)
        by_rank = [
            [blocks[stage] for stage in layout.stages_of(pp_rank)] for pp_rank in range(layout.pp)
        ]
        own_blocks = by_rank[ranks.pp_rank] if layout.pp > 1 else None

        given = given_weights(config)

        def initialise(name: str, module: nn.Module) -> None:
            own = (
                (f"{name}.{leaf}" if name else leaf, p)
                for leaf, p in module.named_parameters(recurse=False)
            )
            fill(own, config.model, config.train.seed, given)
            if partition is not None:
                partition(module)

        model = build_model(config, device, split=split, blocks=own_blocks, place=initialise)
        model.set_activation_checkpointing(layout.activation_checkpointing)
        if config.train.compile:
            model.compile_blocks()
        shapes = {
            name: tuple(parameter.shape)
            for name, parameter in build_model(config, "meta").named_parameters()
        }
        return RankModel(
            config, layout, ranks, shapes, groups, model, blocks, holders(config, by_rank)
        )

    def owned(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters that this rank writes into a checkpoint: exactly one of the ranks that
        hold the same one writes it."""
        for name, parameter in self.model.named_parameters():
            if self.pp_ranks[name][0] == self.ranks.pp_rank and (
                self.ranks.tp_rank == 0 or not part_of(parameter).is_whole
            ):
                yield name, parameter

    def shared(self) -> Iterator[tuple[nn.Parameter, list[int]]]:
        """This rank's parameters that other pipeline ranks hold too, in the same order on all of
        them."""
        mine = dict(self.model.named_parameters())
        for name, pp_ranks in sorted(self.pp_ranks.items()):
            if len(pp_ranks) > 1 and name in mine:
                yield mine[name], pp_ranks

    @torch.no_grad()
    def whole_model(self, weights: dict[str, torch.Tensor]) -> LanguageModel:
        """The whole model on every rank, gathered from the `weights` that each rank owns.
        Collective over the world."""
        whole, own = (
            build_model(self.config, self.model_device),
            dict(self.model.named_parameters()),
        )
        for name, parameter in whole.named_parameters():
            parameter.zero_()
            if name in weights:
                part_of(own[name]).of(parameter).copy_(weights[name])
            # Every element is owned by one rank and zero on the others, so the sum gathers it.
            if self.ranks.tp * self.ranks.pp > 1:
                dist.all_reduce(parameter)
        return whole

    @property
    def model_device(self) -> torch.device:
        return next(self.model.parameters()).device


def holders(config: RunConfig, by_rank: list[list[tuple[int, int]]]) -> dict[str, list[int]]:
    """The pipeline ranks that hold each parameter of the whole model, from the blocks of each
    rank's stages."""
    whole = build_model(config, "meta")
    needed = [set[str]().union(*(whole.stage(*blocks) for blocks in stages)) for stages in by_rank]
    return {
        name: [rank for rank, names in enumerate(needed) if covered(name, names)]
        for name, _ in whole.named_parameters()
    }
