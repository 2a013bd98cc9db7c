"""An encoder and a decoder that looks at it: what T5 and the first Transformer share.

Shapes: B batch, T positions of the decoder, U of the encoder (S of either), D d_model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
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


class Side(nn.Module):
    """Positions, blocks and norm of the encoder or of the decoder."""

    def __init__(self, config: RunConfig, *, causal: bool, cross: bool, scale: float | None) -> None:
        super().__init__()
        self.position = POSITIONS[config.position.kind](config, causal=causal)
        self.dropout = nn.Dropout(config.model.dropout)
        self.blocks = BlockStack(config, causal=causal, cross=cross, scale=scale)
        self.final_norm = build_final_norm(config.model)

    def forward(
        self,
        x_BSD: Tensor,
        documents_BS: Tensor | None,
        caches: Sequence[Cache] | None = None,
        source: Source | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        start = caches[0].length if caches else 0
        x_BSD = self.dropout(self._with_positions(x_BSD, start, documents_BS))
        x_BSD, balance_B = self.blocks(x_BSD, self.position.context(start, x_BSD, documents_BS), caches, source)
        return self.final_norm(x_BSD), balance_B

    def _with_positions(self, x_BSD: Tensor, start: int, documents_BS: Tensor | None) -> Tensor:
        """Each document of a row has positions of its own, from 0."""
        if documents_BS is None:
            return self.position.embed(x_BSD, start)
        table_SD = self.position.embed(x_BSD.new_zeros(1, *x_BSD.shape[1:]), start)[0]
        return x_BSD + table_SD[places(documents_BS)]


class EncoderDecoder(GenerativeModel):
    """One token embedding for both sides; the head may be the embedding, and its input is multiplied by `head_scale`. Attention
    scores are multiplied by `score_scale` (None: 1 / sqrt(d_head))."""

    def __init__(self, config: RunConfig, *, head_scale: float = 1.0, score_scale: float | None = None) -> None:
        super().__init__()
        self.config = model = config.model
        self.smoothing = config.objective.label_smoothing
        self.head_scale = head_scale
        self.embedding = TokenEmbedding(config)
        self.encoder = Side(config, causal=False, cross=False, scale=score_scale)
        self.decoder = Side(config, causal=True, cross=True, scale=score_scale)
        self.head = None if model.tie_embeddings else nn.Linear(model.d_model, config.vocab_size, bias=False)

    def encode(self, source_BU: Tensor, documents_BU: Tensor | None = None) -> Source:
        return self._encode(source_BU, documents_BU)[0]

    def _encode(self, source_BU: Tensor, documents_BU: Tensor | None) -> tuple[Source, Tensor | None]:
        x_BUD, balance_B = self.encoder(self.embedding(source_BU), documents_BU)
        return Source(x_BUD, documents_BU), balance_B

    def forward(self, tokens_BT: Tensor, caches: Sequence[Cache] | None = None, source: Source | None = None) -> Tensor:
        assert source is not None, "a decoder beside an encoder needs what that made of its tokens"
        x_BTD, _ = self.decoder(self.embedding(tokens_BT), None, caches, source)
        return F.linear(self._head_input(x_BTD), self.head_weight)

    def loss(self, batch: Batch) -> Loss:
        assert batch.source_BU is not None
        source, encoder_balance_B = self._encode(batch.source_BU, batch.source_documents_BU)
        x_BTD, decoder_balance_B = self.decoder(self.embedding(batch.tokens_BT), batch.documents_BT, None, source)
        x_ND = self._head_input(x_BTD).flatten(0, 1)
        loss = head_loss(x_ND, self.head_weight, batch.targets_BT.flatten(), smoothing=self.smoothing)
        for balance_B in (encoder_balance_B, decoder_balance_B):
            loss = add_sequence_term(loss, balance_B, batch.targets_BT, self.config.balance_loss)
        return loss

    def _head_input(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD if self.head_scale == 1 else x_BTD * self.head_scale
        return self.embedding.back(x_BTD) if self.head is None else x_BTD

    @property
    def head_weight(self) -> Tensor:
        return self.embedding.weight if self.head is None else self.head.weight

    def new_caches(self, capacity: int) -> list[Cache]:
        return self.decoder.blocks.new_caches(capacity)


def places(documents_BS: Tensor) -> Tensor:
    """Place of each position in its document, from 0; the positions of a document are neighbours."""
    place_S = torch.arange(documents_BS.shape[1], device=documents_BS.device)
    begins_BS = F.pad(documents_BS[:, 1:] != documents_BS[:, :-1], (1, 0), value=True)
    return place_S - (place_S * begins_BS).cummax(dim=1).values
