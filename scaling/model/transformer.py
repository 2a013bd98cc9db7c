"""The Transformer of Vaswani et al. 2017: sinusoidal positions, post-norm, ReLU, and one matrix for the embeddings of both sides
and the head."""

from __future__ import annotations

from scaling.config import RunConfig
from scaling.model.encoder_decoder import EncoderDecoder


class Transformer(EncoderDecoder):
    """Embeddings are multiplied by sqrt(d_model) (section 3.4); where they are the head as well, that reads x unchanged."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config, embedding_scale=config.model.d_model**0.5)
