"""Norms, feed-forward layers and embeddings that every family is built of.

Shapes: B batch, T positions, D d_model, E width of the embedding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from scaling.config.run_config import ModelConfig, RunConfig
from scaling.model.split import WHOLE, OutputLinear, Split


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * (weight + offset) over the last dim, computed in fp32 (Zhang and
    Sennrich 2019). An offset of 1 lets weight decay pull the factor to 1 (Gemma Team 2024)."""

    def __init__(self, d_model: int, eps: float, offset: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))
        self.eps, self.offset = eps, offset

    def forward(self, x_BTD: Tensor) -> Tensor:
        weight_D = self.weight if self.offset == 0 else self.weight.float() + self.offset
        if (
            x_BTD.device.type == "cpu"
            and torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
        ):
            return _RMSNormOnCPU.apply(x_BTD.float(), weight_D.float(), self.eps).to(x_BTD.dtype)
        return F.rms_norm(x_BTD, (x_BTD.shape[-1],), weight_D.to(x_BTD.dtype), self.eps)


class _RMSNormOnCPU(torch.autograd.Function):
    """F.rms_norm is fused on GPUs, but on CPUs its backward is a chain of elementwise passes.

    Measured, 2048 x 384 fp32, one thread (EPYC, torch 2.13), forward and backward: F.rms_norm 3.5
    ms, this 0.5 ms.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        rstd = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, rstd)
        return (x * rstd).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        # The layernorm kernel with a mean of zero is ours but for one term, -rstd * mean(grad *
        # weight); add it back.
        x, weight, rstd = ctx.saved_tensors
        d_model, mean = x.shape[-1], torch.zeros_like(rstd)
        grad_x, grad_weight, _ = torch.ops.aten.native_layer_norm_backward(
            grad, x, [d_model], mean, rstd, weight, None, [True, True, False]
        )
        grad_x.add_((grad @ weight).unsqueeze(-1).div_(d_model).mul_(rstd))
        return grad_x, grad_weight, None


def working(x: Tensor) -> Tensor:
    """x in the dtype in which linear layers compute: under autocast each of several would make, and
    keep, a copy of its own."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def build_norm(config: ModelConfig, width: int | None = None) -> nn.Module:
    """`config.norm` of a width (null: d_model); layernorm has a bias where the model has biases."""
    width = width or config.d_model
    if config.norm != "layernorm":
        return RMSNorm(width, config.norm_eps, offset=float(config.norm == "rmsnorm_one"))
    return nn.LayerNorm(width, config.norm_eps, bias=config.bias)


def build_final_norm(config: ModelConfig) -> nn.Module:
    """What follows the last block: with post-norm nothing, for that ends in a norm."""
    return nn.Identity() if config.norm_position == "post" else build_norm(config)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functools.partial(F.gelu, approximate="tanh"),
    "gelu_exact": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "swiglu": F.silu,
    "geglu": functools.partial(F.gelu, approximate="tanh"),
    "geglu_exact": F.gelu,
}
"""Functions of the feed-forward layer, or of its gate. GELU: Hendrycks and Gimpel 2016; its tanh
form in GPT-2 and T5 1.1, the exact one in BERT."""


class FeedForward(nn.Module):
    """down(f(up(x))) (Vaswani et al. 2017), or gated, down(f(gate(x)) * up(x)) (Shazeer 2020,
    arXiv:2002.05202)."""

    split: Split = WHOLE
    cut: ClassVar = {
        "gate.weight": 0,
        "gate.bias": 0,
        "up.weight": 0,
        "up.bias": 0,
        "down.weight": 1,
    }

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.gate = (
            nn.Linear(config.d_model, config.ff_width, bias=config.bias) if config.gated else None
        )
        self.up = nn.Linear(config.d_model, config.ff_width, bias=config.bias)
        self.down = OutputLinear(config.ff_width, config.d_model, bias=config.bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = working(self.split.enter(x_BTD))
        if self.gate is None:
            return self.down(self.activation(self.up(x_BTD)))
        return self.down(self.activation(self.gate(x_BTD)) * self.up(x_BTD))


class TokenEmbedding(nn.Embedding):
    """A vector for each token; narrower than d_model it is projected (factorised embeddings: Lan et
    al. 2020, ALBERT).

    In the Transformer, and wherever sinusoids of amplitude 1 are added, multiplied by sqrt(d_model)
    (Vaswani et al. 2017, section 3.4): without it a small model sees little but positions. As the
    head it is not. model.scale_embedding overrides both.
    """

    split: Split = WHOLE
    cut: ClassVar = {"weight": 0}

    def __init__(self, config: RunConfig) -> None:
        model = config.model
        super().__init__(config.vocab_size, model.embedding_width)
        narrow = model.embedding_width != model.input_width
        self.projection = (
            nn.Linear(model.embedding_width, model.d_model, bias=False) if narrow else None
        )
        self.scale = model.d_model**0.5 if config.scales_embedding else 1.0

    def forward(self, tokens_BT: Tensor) -> Tensor:
        x_BTE = self.split.embed(tokens_BT, self.weight)
        x_BTD = x_BTE if self.projection is None else self.projection(x_BTE)
        return x_BTD if self.scale == 1 else x_BTD * self.scale

    def back(self, x_BTD: Tensor) -> Tensor:
        """Project back to the width of the embedding, where it serves as the head."""
        return x_BTD if self.projection is None else F.linear(x_BTD, self.projection.weight.T)
