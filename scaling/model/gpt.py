"""GPT: a causal, pre-norm decoder. By configuration GPT-2's arrangement (learned positions, layernorm, biases,
tanh GELU, tied embeddings) and Llama's (rotary positions, RMSNorm, no biases, SwiGLU, grouped queries) exactly.

Shapes: B batch, T positions, D d_model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from scaling.config import RunConfig
from scaling.model.attention.cache import Cache
from scaling.model.base import LanguageModel
from scaling.model.batch import IGNORED, Batch, Loss
from scaling.model.block import BlockStack
from scaling.model.layers import build_norm
from scaling.model.loss import linear_cross_entropy
from scaling.model.position import POSITIONS


class GPT(LanguageModel):
    """Token embedding, `n_layers` blocks, norm, and a head that may be the embedding itself."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        self.config = model = config.model
        self.embedding = nn.Embedding(config.vocab_size, model.d_model)
        self.position = POSITIONS[config.position.kind](config)
        self.dropout = nn.Dropout(model.dropout)
        self.blocks = BlockStack(config)
        self.final_norm = build_norm(model)
        self.head = None if model.tie_embeddings else nn.Linear(model.d_model, config.vocab_size, bias=False)

    def forward(self, tokens_BT: Tensor, caches: Sequence[Cache] | None = None) -> Tensor:
        return F.linear(self.hidden(tokens_BT, caches), self.head_weight)

    def loss(self, batch: Batch) -> Loss:
        x_ND, targets_N = self.hidden(batch.tokens_BT, documents_BT=batch.documents_BT).flatten(0, 1), batch.targets_BT.flatten()
        nats = linear_cross_entropy(x_ND, self.head_weight, targets_N)
        return Loss(nats, (targets_N != IGNORED).sum(), nats)

    def hidden(self, tokens_BT: Tensor, caches: Sequence[Cache] | None = None, documents_BT: Tensor | None = None) -> Tensor:
        """x_BTD after the final norm: what the head multiplies."""
        start = caches[0].length if caches else 0
        x_BTD = self.dropout(self.position.embed(self.embedding(tokens_BT), start))
        return self.final_norm(self.blocks(x_BTD, self.position.context(start, x_BTD, documents_BT), caches))

    @property
    def head_weight(self) -> Tensor:
        return self.embedding.weight if self.head is None else self.head.weight

    def new_caches(self, capacity: int) -> list[Cache]:
        return self.blocks.new_caches(capacity)
