"""BERT: a bidirectional encoder that fills in hidden tokens (Devlin et al. 2019). With post-norm,
learned positions, layernorm, biases and exact GELU it is the published arrangement; with shared
layers and narrow embeddings ALBERT's (Lan et al. 2020).

Shapes: B batch, T positions, N scored positions, D d_model, E width of the embedding, V vocabulary.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scaling.batch import IGNORED, Batch, Loss
from scaling.config.run_config import RunConfig
from scaling.model.attention.tiles import soft_cap
from scaling.model.base import Flow, MaskedModel, add_balance, add_sequence_term, blocks_of
from scaling.model.block import BlockStack
from scaling.model.layers import ACTIVATIONS, TokenEmbedding, build_final_norm, build_norm
from scaling.model.loss import head_loss
from scaling.model.position import position_named


class MaskedHead(nn.Module):
    """norm(f(dense(x))), which the embedding multiplies, and a bias for each token."""

    cut: ClassVar = {"bias": 0}

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        model = config.model
        self.dense = nn.Linear(model.d_model, model.embedding_width, bias=model.bias)
        self.activation = ACTIVATIONS[model.activation]
        self.norm = build_norm(model, model.embedding_width)
        self.bias = nn.Parameter(torch.empty(config.vocab_size))

    def forward(self, x_ND: Tensor) -> Tensor:
        return self.norm(self.activation(self.dense(x_ND)))


class BERT(MaskedModel):
    """Token, segment and position embeddings, norm, `n_layers` blocks, and a head on the scored
    positions alone.

    With sentence order also a pooler, tanh(dense(first position)), and on it a classifier of two.
    """

    cut: ClassVar = {"decoder.weight": 0}

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        self.config = model = config.model
        self.smoothing = config.objective.label_smoothing
        self.embedding = TokenEmbedding(config)
        self.segments = nn.Embedding(model.segments, model.input_width) if model.segments else None
        self.position = position_named(config.position.kind)(config, causal=False)
        self.embedding_norm = build_norm(model, model.input_width)
        self.input_projection = (
            nn.Linear(model.input_width, model.d_model)
            if model.input_width != model.d_model
            else None
        )
        self.dropout = nn.Dropout(model.dropout)
        self.blocks = BlockStack(config, causal=False)
        self.final_norm = build_final_norm(model)
        self.masked_head = MaskedHead(config)
        self.decoder = (
            None
            if model.tie_embeddings
            else nn.Linear(model.embedding_width, config.vocab_size, bias=False)
        )
        order = config.objective.sentence_order
        self.pooler = nn.Linear(model.d_model, model.d_model, bias=model.bias) if order else None
        self.order_head = nn.Linear(model.d_model, 2, bias=model.bias) if order else None

    def forward(
        self,
        tokens_BT: Tensor,
        segments_BT: Tensor | None = None,
        documents_BT: Tensor | None = None,
    ) -> Tensor:
        x_BTD = self.hidden(tokens_BT, segments_BT, documents_BT)[0]
        logits_BTV = F.linear(self.masked_head(x_BTD), self.decoder_weight, self.masked_head.bias)
        return soft_cap(logits_BTV, self.config.logit_cap)

    def begin(self, batch: Batch) -> Flow:
        tokens_BT = self.split.positions(batch.tokens_BT)
        segments_BT = None if batch.segments_BT is None else self.split.positions(batch.segments_BT)
        return Flow(self._embedded(tokens_BT, segments_BT, self.split.first_position(tokens_BT)))

    def through(self, flow: Flow, batch: Batch, first: int, last: int) -> Flow:
        context = self.position.context(0, flow.x_BTD, batch.documents_BT)
        x_BTD, balance_B = self.blocks(flow.x_BTD, context, first=first, last=last)
        return Flow(x_BTD, None, add_balance(flow.balance_B, balance_B))

    def finish(self, flow: Flow, batch: Batch) -> Loss:
        x_BTD, targets_BT = self.final_norm(flow.x_BTD), self.split.positions(batch.targets_BT)
        scored_BT = targets_BT != IGNORED
        loss = head_loss(
            self.masked_head(x_BTD[scored_BT]),
            self.decoder_weight,
            targets_BT[scored_BT],
            bias_V=self.masked_head.bias,
            cap=self.config.logit_cap,
            smoothing=self.smoothing,
            split=self.split,
            compiled=self.compiled,
        )
        loss = add_sequence_term(loss, flow.balance_B, targets_BT, self.config.balance_loss)
        if self.order_head is None or batch.classes_B is None:
            return loss
        order_B = F.cross_entropy(
            self.order(x_BTD).float(), batch.classes_B, ignore_index=IGNORED, reduction="none"
        )
        # The first position is the first context parallel rank's: the others have no part in this.
        return add_sequence_term(
            loss, order_B, batch.targets_BT, 1.0 if self.split.cp_rank == 0 else 0.0
        )

    def stage(self, first: int, last: int) -> set[str]:
        needed = blocks_of("blocks", first, last) | self.position.needed("position", first == 0)
        if first == 0:
            needed |= {"embedding", "segments", "embedding_norm", "input_projection"}
        if last == self.n_blocks:
            needed |= {"final_norm", "masked_head", "decoder", "pooler", "order_head"}
            needed |= {"embedding.weight"} if self.decoder is None else set()
        return needed

    def hidden(
        self,
        tokens_BT: Tensor,
        segments_BT: Tensor | None = None,
        documents_BT: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """x_BTD after the last block, and the balance_B of experts."""
        x_BTD = self._embedded(tokens_BT, segments_BT, 0)
        x_BTD, balance_B = self.blocks(x_BTD, self.position.context(0, x_BTD, documents_BT))
        return self.final_norm(x_BTD), balance_B

    def _embedded(self, tokens_BT: Tensor, segments_BT: Tensor | None, start: int) -> Tensor:
        x_BTE = self.embedding(tokens_BT)
        if self.segments is not None:
            # of one segment, all positions are of it
            many = segments_BT is not None and self.segments.num_embeddings > 1
            x_BTE = x_BTE + (self.segments(segments_BT) if many else self.segments.weight[0])
        x_BTE = self.dropout(self.embedding_norm(self.position.embed(x_BTE, start)))
        return x_BTE if self.input_projection is None else self.input_projection(x_BTE)

    def order(self, x_BTD: Tensor) -> Tensor:
        """logits_B2 of the segments standing in their order, or swapped."""
        assert self.pooler is not None
        assert self.order_head is not None
        return self.order_head(torch.tanh(self.pooler(x_BTD[:, 0])))

    @property
    def decoder_weight(self) -> Tensor:
        return self.embedding.weight if self.decoder is None else self.decoder.weight
