"""The toys that need torch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from scaling.batch import Batch
from scaling.config.run_config import RunConfig
from scaling.data.tokenizer.byte_level import Tokenizer
from scaling.model.attention.local import LocalAttention
from scaling.model.gpt import GPT
from scaling.model.position import Position


class ToyAttention(LocalAttention):
    """A window, under another name."""


class ToyPosition(Position):
    """One learnt vector, times the position's number."""

    in_blocks = False

    def __init__(self, config: RunConfig, *, causal: bool = True) -> None:
        super().__init__(config)
        self.slope = nn.Embedding(1, config.model.d_model)

    def embed(self, x_BTD: Tensor, start: int) -> Tensor:
        number_T1 = torch.arange(start, start + x_BTD.shape[1], device=x_BTD.device).unsqueeze(1)
        return x_BTD + 0.01 * number_T1 * self.slope.weight


class ToyObjective:
    """Repeat the token that is read."""

    def __init__(self, config: RunConfig, tokenizer: Tokenizer) -> None:
        pass

    def __call__(self, sequences_BS: np.ndarray, ks_B: np.ndarray) -> Batch:
        tokens_BT = torch.from_numpy(sequences_BS.astype(np.int64))
        return Batch(tokens_BT, tokens_BT.clone())


class ToyGPT(GPT):
    """A GPT, under another name."""
