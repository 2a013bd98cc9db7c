"""The Transformer of Vaswani et al. 2017: sinusoidal positions, post-norm, ReLU, and one matrix for
the embeddings of both sides and the head."""

from __future__ import annotations

from scaling.model.encoder_decoder import EncoderDecoder


class Transformer(EncoderDecoder):
    """Nothing but its configuration tells it apart."""
