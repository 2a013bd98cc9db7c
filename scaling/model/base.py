"""What engines and samplers ask of a family.

Shapes: B batch, T positions, S positions of a source, D d_model, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from scaling.batch import IGNORED, Batch, Loss
from scaling.config.cluster import Checkpointing
from scaling.config.run_config import ModelConfig
from scaling.model.attention.cache import Cache
from scaling.model.block import BlockStack, Source
from scaling.model.split import WHOLE, Split


class Flow(NamedTuple):
    """What a batch has become between two blocks: all that one pipeline stage hands to the next.

    source_BSD: what the encoder made, for a decoder beside one. balance_B: of experts, summed over
    the blocks so far.
    """

    x_BTD: Tensor
    source_BSD: Tensor | None = None
    balance_B: Tensor | None = None

    def packed(self) -> Tensor:
        """Pack all three into one tensor, (B, T + S + 1, D): one message, and one backward."""
        parts = [self.x_BTD] if self.source_BSD is None else [self.x_BTD, self.source_BSD]
        if self.balance_B is not None:
            row_B1D = self.balance_B.to(self.x_BTD.dtype)[:, None, None].expand(
                -1, 1, self.x_BTD.shape[2]
            )
            parts.append(row_B1D / row_B1D.shape[2])
        return torch.cat(parts, dim=1)

    @staticmethod
    def unpacked(packed: Tensor, n_source: int | None, *, balanced: bool) -> Flow:
        """n_source: positions S of a source, None without one. balanced: whether there is a
        balance_B."""
        balance_B = packed[:, -1].float().sum(dim=1) if balanced else None
        packed = packed[:, :-1] if balanced else packed
        if n_source is None:
            return Flow(packed, None, balance_B)
        n = packed.shape[1] - n_source
        return Flow(packed[:, :n], packed[:, n:], balance_B)


class LanguageModel(nn.Module, ABC):
    """A family of models. `config` is its shape; its blocks are in one or more BlockStacks.

    The loss is made in three steps, so that the blocks can be shared out among pipeline stages:
    `begin`, `through` the blocks in the order in which they run (an encoder's before its
    decoder's), `finish`.
    """

    config: ModelConfig
    split: Split = WHOLE
    n_stacks = 1
    compiled = False

    def loss(self, batch: Batch) -> Loss:
        """Sums over the scored targets of a batch: with context parallel ranks, of the rank's own
        positions."""
        return self.finish(self.through(self.begin(batch), batch, 0, self.n_blocks), batch)

    @abstractmethod
    def begin(self, batch: Batch) -> Flow:
        """The input of the first block."""

    @abstractmethod
    def through(self, flow: Flow, batch: Batch, first: int, last: int) -> Flow:
        """What blocks [first, last) make of what comes out of the block before them."""

    @abstractmethod
    def finish(self, flow: Flow, batch: Batch) -> Loss:
        """The loss, from what the last block makes."""

    @abstractmethod
    def stage(self, first: int, last: int) -> set[str]:
        """Names of the modules and parameters that blocks [first, last) need: theirs, those of
        `begin` where first is 0, and those of `finish` where last is `n_blocks`."""

    @property
    def n_blocks(self) -> int:
        """Blocks that run one after another, in all stacks."""
        return self.n_stacks * self.config.n_layers

    def crosses(self, block: int) -> bool:
        """Whether a source passes into this block from the one before."""
        return False

    def set_activation_checkpointing(self, kind: Checkpointing) -> None:
        """What is computed again in backward: see `scaling.model.recompute`."""
        for stack in self._stacks():
            stack.recompute = kind

    def compile_blocks(self) -> None:
        """torch.compile each block in place: equal blocks share a graph, and no parameter changes
        its name. So too what the loss does to logits."""
        self.compiled = True
        for stack in self._stacks():
            stack.compile_blocks()

    def _stacks(self) -> list[BlockStack]:
        return [module for module in self.modules() if isinstance(module, BlockStack)]


class GenerativeModel(LanguageModel):
    """A family that predicts the next token: a decoder, or one beside an encoder."""

    @abstractmethod
    def forward(
        self, tokens_BT: Tensor, caches: Sequence[Cache] | None = None, source: Source | None = None
    ) -> Tensor:
        """logits_BTV; with caches, of the tokens that follow those already in them. `source` is
        what `encode` made.

        Of a whole model: `engine.whole_model()` puts one together.
        """

    @abstractmethod
    def new_caches(self, capacity: int) -> list[Cache]:
        """An empty cache for each block, with room for `capacity` positions."""

    def encode(self, source_BU: Tensor, documents_BU: Tensor | None = None) -> Source:
        """What the decoder looks at. Raises TypeError for a family without an encoder."""
        raise TypeError(f"{type(self).__name__} has no encoder")


class MaskedModel(LanguageModel):
    """A family that fills in hidden tokens."""

    @abstractmethod
    def forward(
        self,
        tokens_BT: Tensor,
        segments_BT: Tensor | None = None,
        documents_BT: Tensor | None = None,
    ) -> Tensor:
        """logits_BTV of every position."""


def add_balance(balance_B: Tensor | None, more_B: Tensor | None) -> Tensor | None:
    """The sum of what there is."""
    if balance_B is None or more_B is None:
        return more_B if balance_B is None else balance_B
    return balance_B + more_B


def add_sequence_term(
    loss: Loss, term_B: Tensor | None, targets_BT: Tensor, weight: float = 1.0
) -> Loss:
    """Add a term of whole sequences to the objective, each counted once for every scored target of
    its sequence."""
    if term_B is None:
        return loss
    n_targets_B = (targets_BT != IGNORED).sum(dim=1)
    return loss._replace(objective=loss.objective + weight * (term_B.float() * n_targets_B).sum())


def blocks_of(stack: str, first: int, last: int) -> set[str]:
    """Names of blocks [first, last) of the stack with that name."""
    return {f"{stack}.{index}" for index in range(first, last)}
