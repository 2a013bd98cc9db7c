"""T5: an encoder and a decoder with biases of relative position, RMSNorm and no linear biases
(Raffel et al. 2020).

With a gated GELU and a head of its own it is version 1.1; with ReLU and a tied head the first.
"""

from __future__ import annotations

from scaling.config.run_config import RunConfig
from scaling.model.encoder_decoder import EncoderDecoder


class T5(EncoderDecoder):
    """Scores are not divided by sqrt(d_head): its initial queries are so much smaller (Raffel et
    al.'s code; `initialise`). A tied head reads x / sqrt(d_model)."""

    def __init__(self, config: RunConfig) -> None:
        model = config.model
        super().__init__(
            config, head_scale=model.d_model**-0.5 if model.tie_embeddings else 1.0, score_scale=1.0
        )
