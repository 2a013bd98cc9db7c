"""What engines and samplers ask of a family.

Shapes: B batch, T positions, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from scaling.config import ModelConfig
from scaling.model.attention.cache import Cache
from scaling.model.batch import Batch, Loss
from scaling.model.block import BlockStack


class LanguageModel(nn.Module, ABC):
    """A family of models. `config` is its shape; its blocks are in one or more BlockStacks."""

    config: ModelConfig

    @abstractmethod
    def forward(self, tokens_BT: Tensor, caches: Sequence[Cache] | None = None) -> Tensor:
        """logits_BTV; with caches, of the tokens that follow those already in them."""

    @abstractmethod
    def loss(self, batch: Batch) -> Loss:
        """Sums over the scored targets of a batch."""

    @abstractmethod
    def new_caches(self, capacity: int) -> list[Cache]:
        """An empty cache for each block, with room for `capacity` positions."""

    def set_activation_checkpointing(self, kind: Literal["none", "full"]) -> None:
        """full: in training keep the input of each block only, and recompute the block in backward."""
        for stack in self._stacks():
            stack.checkpointing = kind

    def compile_blocks(self) -> None:
        """torch.compile each block in place: equal blocks share a graph, and no parameter changes its name."""
        for stack in self._stacks():
            stack.compile_blocks()

    def _stacks(self) -> list[BlockStack]:
        return [module for module in self.modules() if isinstance(module, BlockStack)]
