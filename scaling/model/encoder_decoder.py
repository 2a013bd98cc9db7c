"""An encoder and a decoder that looks at it: what T5 and the first Transformer share.

Shapes: B batch, T positions of the decoder, U of the encoder (S of either), D d_model, V
vocabulary.
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
from scaling.model.position import position_named
from scaling.model.split import WHOLE, Split


class Side(nn.Module):
    """Positions, blocks and norm of the encoder or of the decoder."""

    split: Split = WHOLE

    def __init__(
        self, config: RunConfig, *, causal: bool, cross: bool, scale: float | None
    ) -> None:
        super().__init__()
        self.n_layers = config.model.n_layers
        self.position = position_named(config.position.kind)(config, causal=causal)
        self.embedding_norm = (
            build_norm(config.model) if config.model.input_normed else nn.Identity()
        )
        self.dropout = nn.Dropout(config.model.dropout)
        self.blocks = BlockStack(config, causal=causal, cross=cross, scale=scale)
        self.final_norm = build_final_norm(config.model)

    def forward(
        self, x_BSD: Tensor, caches: Sequence[Cache] | None = None, source: Source | None = None
    ) -> Tensor:
        """Encode embedded tokens, one document a row, up to and including the last norm."""
        start = caches[0].length if caches else 0
        x_BSD = self.begin(x_BSD, None, start)
        x_BSD, _ = self.blocks(x_BSD, self.position.context(start, x_BSD), caches, source)
        return self.final_norm(x_BSD)

    def begin(self, x_BSD: Tensor, documents_BS: Tensor | None, start: int) -> Tensor:
        """The input of the first block. Each document of a row has positions of its own, from 0."""
        if documents_BS is None:
            return self.dropout(self.embedding_norm(self.position.embed(x_BSD, start)))
        n_positions = self.split.n_positions(x_BSD)
        table_SD = self.position.embed(x_BSD.new_zeros(1, n_positions, x_BSD.shape[2]), 0)[0]
        x_BSD = x_BSD + table_SD[self.split.positions(places(documents_BS))]
        return self.dropout(self.embedding_norm(x_BSD))

    def through(
        self,
        x_BSD: Tensor,
        documents_BS: Tensor | None,
        source: Source | None,
        first: int,
        last: int,
    ) -> tuple[Tensor, Tensor | None]:
        """x_BSD after blocks [first, last), and their balance_B."""
        context = self.position.context(0, x_BSD, documents_BS)
        return self.blocks(x_BSD, context, None, source, first=first, last=last)


class EncoderDecoder(GenerativeModel):
    """One token embedding for both sides; the head may be the embedding, and its input is
    multiplied by `head_scale`. Attention scores are multiplied by `score_scale` (None: 1 /
    sqrt(d_head))."""

    cut: ClassVar = {"head.weight": 0, "head_bias": 0}
    n_stacks = 2

    def __init__(
        self, config: RunConfig, *, head_scale: float = 1.0, score_scale: float | None = None
    ) -> None:
        super().__init__()
        self.config = model = config.model
        self.smoothing = config.objective.label_smoothing
        self.head_scale = head_scale
        self.embedding = TokenEmbedding(config)
        self.encoder = Side(config, causal=False, cross=False, scale=score_scale)
        self.decoder = Side(config, causal=True, cross=True, scale=score_scale)
        self.head = (
            None
            if model.tie_embeddings
            else nn.Linear(model.d_model, config.vocab_size, bias=False)
        )
        self.head_bias = nn.Parameter(torch.empty(config.vocab_size)) if model.head_bias else None

    def encode(self, source_BU: Tensor, documents_BU: Tensor | None = None) -> Source:
        assert documents_BU is None, "a text is one document"
        return Source(self.encoder(self.embedding(source_BU)))

    def forward(
        self, tokens_BT: Tensor, caches: Sequence[Cache] | None = None, source: Source | None = None
    ) -> Tensor:
        assert source is not None, "a decoder beside an encoder needs what that made of its tokens"
        x_BTD = self.decoder(self.embedding(tokens_BT), caches, source)
        logits_BTV = F.linear(self._head_input(x_BTD), self.head_weight, self.head_bias)
        return soft_cap(logits_BTV, self.config.logit_cap)

    def begin(self, batch: Batch) -> Flow:
        assert batch.source_BU is not None
        return Flow(self._begin_side(self.encoder, batch.source_BU, batch.source_documents_BU))

    def through(self, flow: Flow, batch: Batch, first: int, last: int) -> Flow:
        """Blocks of the encoder come first. Between the two stands the source, and the tokens of
        the target come in."""
        n = self.encoder.n_layers
        if first < n:
            x_BUD, balance_B = self.encoder.through(
                flow.x_BTD, batch.source_documents_BU, None, first, min(last, n)
            )
            flow = Flow(x_BUD, None, add_balance(flow.balance_B, balance_B))
        if last <= n:
            return flow
        if first <= n:
            x_BTD = self._begin_side(self.decoder, batch.tokens_BT, batch.documents_BT)
            flow = Flow(x_BTD, self.encoder.final_norm(flow.x_BTD), flow.balance_B)
        assert flow.source_BSD is not None
        source = Source(flow.source_BSD, batch.source_documents_BU)
        x_BTD, balance_B = self.decoder.through(
            flow.x_BTD, batch.documents_BT, source, max(first - n, 0), last - n
        )
        return Flow(x_BTD, flow.source_BSD, add_balance(flow.balance_B, balance_B))

    def finish(self, flow: Flow, batch: Batch) -> Loss:
        x_ND = self._head_input(self.decoder.final_norm(flow.x_BTD)).flatten(0, 1)
        targets_BT = self.split.positions(batch.targets_BT)
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
        n = self.encoder.n_layers
        needed = blocks_of("encoder.blocks", first, min(last, n)) | blocks_of(
            "decoder.blocks", max(first - n, 0), last - n
        )
        if first < n:
            needed |= self.encoder.position.needed("encoder.position", first == 0)
        if last > n:
            needed |= self.decoder.position.needed("decoder.position", first <= n)
        if first == 0:
            needed |= {"embedding", "encoder.embedding_norm"}
        if first <= n < last:
            needed |= {"encoder.final_norm", "embedding", "decoder.embedding_norm"}
        if last == self.n_blocks:
            needed |= {"decoder.final_norm", "head", "head_bias"} | (
                {"embedding"} if self.head is None else set()
            )
        return needed

    def crosses(self, block: int) -> bool:
        return block > self.encoder.n_layers

    def _begin_side(self, side: Side, tokens_BS: Tensor, documents_BS: Tensor | None) -> Tensor:
        own_BS = self.split.positions(tokens_BS)
        return side.begin(self.embedding(own_BS), documents_BS, self.split.first_position(own_BS))

    def _head_input(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD if self.head_scale == 1 else x_BTD * self.head_scale
        return self.embedding.back(x_BTD) if self.head is None else x_BTD

    @property
    def head_weight(self) -> Tensor:
        return self.embedding.weight if self.head is None else self.head.weight

    def new_caches(self, capacity: int) -> list[Cache]:
        return self.decoder.blocks.new_caches(capacity)


def places(documents_BS: Tensor) -> Tensor:
    """Place of each position in its document, from 0; the positions of a document are
    neighbours."""
    place_S = torch.arange(documents_BS.shape[1], device=documents_BS.device)
    begins_BS = F.pad(documents_BS[:, 1:] != documents_BS[:, :-1], (1, 0), value=True)
    return place_S - (place_S * begins_BS).cummax(dim=1).values
