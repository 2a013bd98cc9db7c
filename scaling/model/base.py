"""What engines and samplers ask of a family.

Shapes: B batch, T positions, U positions of an encoder, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from scaling.config import ModelConfig
from scaling.model.attention.cache import Cache
from scaling.model.batch import IGNORED, Batch, Loss
from scaling.model.block import BlockStack, Source


class LanguageModel(nn.Module, ABC):
    """A family of models. `config` is its shape; its blocks are in one or more BlockStacks."""

    config: ModelConfig

    @abstractmethod
    def loss(self, batch: Batch) -> Loss:
        """Sums over the scored targets of a batch."""

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


class GenerativeModel(LanguageModel):
    """A family that predicts the next token: a decoder, or one beside an encoder."""

    @abstractmethod
    def forward(self, tokens_BT: Tensor, caches: Sequence[Cache] | None = None, source: Source | None = None) -> Tensor:
        """logits_BTV; with caches, of the tokens that follow those already in them. `source` is what `encode` made."""

    @abstractmethod
    def new_caches(self, capacity: int) -> list[Cache]:
        """An empty cache for each block, with room for `capacity` positions."""

    def encode(self, source_BU: Tensor, documents_BU: Tensor | None = None) -> Source:
        """What the decoder looks at. Raises TypeError for a family without an encoder."""
        raise TypeError(f"{type(self).__name__} has no encoder")


def add_sequence_term(loss: Loss, term_B: Tensor | None, targets_BT: Tensor, weight: float = 1.0) -> Loss:
    """Add a term of whole sequences to the objective, each counted once for every scored target of its sequence."""
    if term_B is None:
        return loss
    n_targets_B = (targets_BT != IGNORED).sum(dim=1)
    return loss._replace(objective=loss.objective + weight * (term_B.float() * n_targets_B).sum())
