"""GPT: a causal decoder. By configuration GPT-2's arrangement (learned positions, layernorm,
biases, tanh GELU, tied embeddings), Llama's (rotary positions, RMSNorm, no biases, SwiGLU, grouped
queries), and GPT's first (post-norm) exactly.

Shapes: B batch, T positions, D d_model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scaling.batch import Batch, Loss
from scaling.config.run_config import RunConfig
from scaling.model.attention.cache import Cache
from scaling.model.attention.tiles import soft_cap
from scaling.model.base import Flow, GenerativeModel, add_balance, add_sequence_term, blocks_of
from scaling.model.block import BlockStack, Source
from scaling.model.layers import TokenEmbedding, build_final_norm, build_norm
from scaling.model.loss import head_loss
from scaling.model.parametrization import logit_scale
from scaling.model.position import position_named


class GPT(GenerativeModel):
    """Token embedding, `n_layers` blocks, norm, and a head that may be the embedding itself."""

    cut: ClassVar = {"head.weight": 0, "head_bias": 0}

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        self.config = model = config.model
        self.smoothing = config.objective.label_smoothing
        self.embedding = TokenEmbedding(config)
        self.position = position_named(config.position.kind)(config)
        self.embedding_norm = build_norm(model) if model.input_normed else nn.Identity()
        self.dropout = nn.Dropout(model.dropout)
        self.blocks = BlockStack(config)
        self.final_norm = build_final_norm(model)
        self.head = (
            None
            if model.tie_embeddings
            else nn.Linear(model.d_model, config.vocab_size, bias=False)
        )
        self.head_bias = nn.Parameter(torch.empty(config.vocab_size)) if model.head_bias else None
        self.logit_scale = logit_scale(model)

    def forward(
        self, tokens_BT: Tensor, caches: Sequence[Cache] | None = None, source: Source | None = None
    ) -> Tensor:
        logits_BTV = F.linear(self.hidden(tokens_BT, caches), self.head_weight, self.head_bias)
        return soft_cap(logits_BTV, self.config.logit_cap)

    def hidden(
        self,
        tokens_BT: Tensor,
        caches: Sequence[Cache] | None = None,
        documents_BT: Tensor | None = None,
    ) -> Tensor:
        """x after the final norm, what the head multiplies: of width d_model, or of the embedding's
        if that is the head."""
        start = caches[0].length if caches else 0
        x_BTD = self._embedded(tokens_BT, start)
        x_BTD, _ = self.blocks(x_BTD, self.position.context(start, x_BTD, documents_BT), caches)
        return self._head_input(x_BTD)

    def begin(self, batch: Batch) -> Flow:
        tokens_BT = self.split.positions(batch.tokens_BT)
        return Flow(self._embedded(tokens_BT, self.split.first_position(tokens_BT)))

    def through(self, flow: Flow, batch: Batch, first: int, last: int) -> Flow:
        context = self.position.context(0, flow.x_BTD, batch.documents_BT)
        x_BTD, balance_B = self.blocks(flow.x_BTD, context, first=first, last=last)
        return Flow(x_BTD, None, add_balance(flow.balance_B, balance_B))

    def finish(self, flow: Flow, batch: Batch) -> Loss:
        x_ND, targets_BT = (
            self._head_input(flow.x_BTD).flatten(0, 1),
            self.split.positions(batch.targets_BT),
        )
        loss = head_loss(
            x_ND,
            self.head_weight,
            targets_BT.flatten(),
            bias_V=self.head_bias,
            cap=self.config.logit_cap,
            smoothing=self.smoothing,
            split=self.split,
            compiled=self.compiled,
        )
        return add_sequence_term(loss, flow.balance_B, targets_BT, self.config.balance_loss)

    def stage(self, first: int, last: int) -> set[str]:
        needed = blocks_of("blocks", first, last) | self.position.needed("position", first == 0)
        if first == 0:
            needed |= {"embedding", "embedding_norm"}
        if last == self.n_blocks:
            needed |= {"final_norm", "head", "head_bias"} | (
                {"embedding"} if self.head is None else set()
            )
        return needed

    def _embedded(self, tokens_BT: Tensor, start: int) -> Tensor:
        x_BTD = self.position.embed(self.embedding(tokens_BT), start)
        return self.dropout(self.embedding_norm(x_BTD))

    def _head_input(self, x_BTD: Tensor) -> Tensor:
        x_BTD = self.final_norm(x_BTD)
        x_BTD = x_BTD if self.logit_scale == 1 else x_BTD * self.logit_scale
        return self.embedding.back(x_BTD) if self.head is None else x_BTD

    @property
    def head_weight(self) -> Tensor:
        return self.embedding.weight if self.head is None else self.head.weight

    def new_caches(self, capacity: int) -> list[Cache]:
        return self.blocks.new_caches(capacity)
