"""The plain PyTorch equivalent: a GPT of the same shape, and the loop that trains it.

The yardstick of loop.py, kept as good as a page of code can be: fused attention, fused AdamW,
cross-entropy in one call, autocast for bf16, batches in memory before the clock starts, no
synchronisation but a loss read once a segment.

Shapes: B batch, T positions, D d_model, F d_ff, H heads, K d_head, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scaling.config.run_config import ModelConfig, OptimConfig


def _rotary(seq_len: int, d_head: int, theta: float) -> tuple[Tensor, Tensor]:
    angle_TP = torch.outer(torch.arange(seq_len), theta ** (-torch.arange(0, d_head, 2) / d_head))
    angle_TK = torch.cat((angle_TP, angle_TP), dim=-1)
    return angle_TK.cos(), angle_TK.sin()


def _turn(x_BHTK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    a, b = x_BHTK.chunk(2, dim=-1)
    return (x_BHTK * cos_TK + torch.cat((-b, a), dim=-1) * sin_TK).type_as(x_BHTK)


class Attention(nn.Module):
    def __init__(self, shape: ModelConfig) -> None:
        super().__init__()
        self.d_head = shape.head_width
        self.q, self.k, self.v, self.o = (
            nn.Linear(shape.d_model, shape.d_model, bias=False) for _ in range(4)
        )

    def forward(self, x_BTD: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
        B, T, D = x_BTD.shape
        q, k, v = (
            linear(x_BTD).view(B, T, -1, self.d_head).transpose(1, 2)
            for linear in (self.q, self.k, self.v)
        )
        y_BHTK = F.scaled_dot_product_attention(
            _turn(q, cos_TK, sin_TK), _turn(k, cos_TK, sin_TK), v, is_causal=True
        )
        return self.o(y_BHTK.transpose(1, 2).reshape(B, T, D))


class FeedForward(nn.Module):
    def __init__(self, shape: ModelConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(shape.d_model, shape.ff_width, bias=False)
        self.up = nn.Linear(shape.d_model, shape.ff_width, bias=False)
        self.down = nn.Linear(shape.ff_width, shape.d_model, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x_BTD)) * self.up(x_BTD))


class Block(nn.Module):
    def __init__(self, shape: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(shape.d_model, shape.norm_eps)
        self.attention = Attention(shape)
        self.feed_forward_norm = nn.RMSNorm(shape.d_model, shape.norm_eps)
        self.feed_forward = FeedForward(shape)

    def forward(self, x_BTD: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), cos_TK, sin_TK)
        return x_BTD + self.feed_forward(self.feed_forward_norm(x_BTD))


class PlainGPT(nn.Module):
    """Llama's architecture with a tied head. Its parameters have the project's own names."""

    def __init__(self, shape: ModelConfig, vocab_size: int, seq_len: int, theta: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, shape.d_model)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.n_layers))
        self.final_norm = nn.RMSNorm(shape.d_model, shape.norm_eps)
        cos_TK, sin_TK = _rotary(seq_len, shape.head_width, theta)
        self.register_buffer("cos_TK", cos_TK, persistent=False)
        self.register_buffer("sin_TK", sin_TK, persistent=False)

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean cross-entropy in nats."""
        x_BTD = self.embedding(tokens_BT)
        for block in self.blocks:
            x_BTD = block(x_BTD, self.cos_TK, self.sin_TK)
        logits_BTV = F.linear(self.final_norm(x_BTD), self.embedding.weight)
        return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())


class PlainLoop:
    """Trains on `batches`, (tokens_BT, targets_BT) per step, repeated from the start; constant
    learning rate."""

    def __init__(
        self,
        model: PlainGPT,
        batches: Sequence[tuple[Tensor, Tensor]],
        optim: OptimConfig,
        *,
        bf16: bool,
    ) -> None:
        self._model, self._batches, self._bf16, self._grad_clip = (
            model,
            batches,
            bf16,
            optim.grad_clip,
        )
        matrices = [
            p for name, p in model.named_parameters() if p.ndim == 2 and "embedding" not in name
        ]
        rest = [p for name, p in model.named_parameters() if p.ndim < 2 or "embedding" in name]
        groups = [
            {"params": matrices, "weight_decay": optim.weight_decay},
            {"params": rest, "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(
            groups, optim.lr, (optim.beta1, optim.beta2), optim.eps, fused=True
        )
        self._done = 0

    def _precision(self) -> AbstractContextManager[object]:
        device = self._model.embedding.weight.device.type
        return torch.autocast(device, dtype=torch.bfloat16) if self._bf16 else nullcontext()

    def run(self, n_steps: int) -> float:
        """Train for `n_steps` more steps; returns their mean loss."""
        total = torch.zeros((), device=self._model.embedding.weight.device)
        for _ in range(n_steps):
            total += self.accumulated(1)
        return float(total) / n_steps

    def accumulated(self, n_micro_batches: int) -> Tensor:
        """One step on the gradients of the next `n_micro_batches`; returns their mean loss without
        waiting for it."""
        total = torch.zeros((), device=self._model.embedding.weight.device)
        for _ in range(n_micro_batches):
            tokens_BT, targets_BT = self._batches[self._done % len(self._batches)]
            with self._precision():
                loss = self._model(tokens_BT, targets_BT) / n_micro_batches
            loss.backward()
            total += loss.detach()
            self._done += 1
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._grad_clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return total
