"""Objectives of small runs, with a tokenizer of bytes that has every special token."""

from __future__ import annotations

from functools import cache

import numpy as np

from scaling.config.run_config import RunConfig, TokenizerConfig
from scaling.data.objective import MakeBatch, make_batch_for
from scaling.data.tokenizer.byte_level import Tokenizer
from scaling.data.tokenizer.training import train_tokenizer
from scaling.planner.cost.lengths import lengths
from tests.support.configs import composed

N_SENTINELS = 60
EOT, PAD, CLS, SEP, MASK = range(256, 261)
SENTINELS = range(261, 261 + N_SENTINELS)
BYTES = (
    "tokenizer=byte",
    "tokenizer.special_tokens=all",
    f"tokenizer.n_sentinels={N_SENTINELS}",
    f"tokenizer.vocab_size={261 + N_SENTINELS}",
)
FAMILY = {
    "causal_lm": "gpt_nano",
    "masked_lm": "bert_tiny",
    "span_corruption": "t5_tiny",
    "prefix_lm": "t5_tiny",
    "seq2seq": "transformer_base",
}


@cache
def byte_tokenizer() -> Tokenizer:
    return train_tokenizer(
        TokenizerConfig(
            kind="byte", vocab_size=261 + N_SENTINELS, special_tokens="all", n_sentinels=N_SENTINELS
        ),
        [],
    )


def objective(*overrides: str) -> tuple[RunConfig, MakeBatch]:
    """The configuration of a small run, and its objective; the model is the one that goes with
    it."""
    kind = next(text.partition("=")[2] for text in overrides if text.startswith("objective="))
    data = ("data=text_pairs", "data.path=unread") if kind == "seq2seq" else ()
    config = composed(f"model={FAMILY[kind]}", *data, *BYTES, *overrides)
    return config, make_batch_for(config, byte_tokenizer())


def texts(config: RunConfig, n: int, seed: int = 0) -> np.ndarray:
    """Random bytes without end-of-text, as stored sequences."""
    shape = lengths(config)
    return np.random.default_rng(seed).integers(0, 256, (n, shape.stride + shape.overlap))
