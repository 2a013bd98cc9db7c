"""GPT: a causal decoder. By configuration GPT-2's arrangement (learned positions, layernorm, biases, tanh GELU, tied
embeddings), Llama's (rotary positions, RMSNorm, no biases, SwiGLU, grouped queries), and GPT's first (post-norm) exactly.

Shapes: B batch, T positions, D d_model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from scaling.config import RunConfig
from scaling.model.attention.cache import Cache
from scaling.model.base import GenerativeModel, add_sequence_term
from scaling.model.batch import Batch, Loss
from scaling.model.block import BlockStack, Source
from scaling.model.layers import TokenEmbedding, build_final_norm
from scaling.model.loss import head_loss
from scaling.model.position import POSITIONS


class GPT(GenerativeModel):
    """Token embedding, `n_layers` blocks, norm, and a head that may be the embedding itself."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        self.config = model = config.model
        self.smoothing = config.objective.label_smoothing
        self.embedding = TokenEmbedding(config)
        self.position = POSITIONS[config.position.kind](config)
        self.dropout = nn.Dropout(model.dropout)
        self.blocks = BlockStack(config)
        self.final_norm = build_final_norm(model)
        self.head = None if model.tie_embeddings else nn.Linear(model.d_model, config.vocab_size, bias=False)

    def forward(self, tokens_BT: Tensor, caches: Sequence[Cache] | None = None, source: Source | None = None) -> Tensor:
        return F.linear(self._hidden(tokens_BT, caches, None)[0], self.head_weight)

    def loss(self, batch: Batch) -> Loss:
        x_BTD, balance_B = self._hidden(batch.tokens_BT, None, batch.documents_BT)
        loss = head_loss(x_BTD.flatten(0, 1), self.head_weight, batch.targets_BT.flatten(), smoothing=self.smoothing)
        return add_sequence_term(loss, balance_B, batch.targets_BT, self.config.balance_loss)

    def hidden(self, tokens_BT: Tensor, caches: Sequence[Cache] | None = None, documents_BT: Tensor | None = None) -> Tensor:
        """x after the final norm, what the head multiplies: of width d_model, or of the embedding's if that is the head."""
        return self._hidden(tokens_BT, caches, documents_BT)[0]

    def _hidden(
        self, tokens_BT: Tensor, caches: Sequence[Cache] | None, documents_BT: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        start = caches[0].length if caches else 0
        x_BTD = self.dropout(self.position.embed(self.embedding(tokens_BT), start))
        x_BTD, balance_B = self.blocks(x_BTD, self.position.context(start, x_BTD, documents_BT), caches)
        x_BTD = self.final_norm(x_BTD)
        return (self.embedding.back(x_BTD) if self.head is None else x_BTD), balance_B

    @property
    def head_weight(self) -> Tensor:
        return self.embedding.weight if self.head is None else self.head.weight

    def new_caches(self, capacity: int) -> list[Cache]:
        return self.blocks.new_caches(capacity)
