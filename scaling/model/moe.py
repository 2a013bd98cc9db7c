"""Mixture of experts in place of a feed-forward layer: each token takes some of many.

Shapes: B batch, T positions, N = B T tokens, n tokens of an expert, D d_model, E experts, J experts
of a token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scaling.config.run_config import ModelConfig
from scaling.model.layers import FeedForward
from scaling.model.split import WHOLE, Split


class MixtureOfExperts(nn.Module):
    """sum over the J likeliest experts i of p_i expert_i(x), with p = softmax(router(x)) (Shazeer
    et al. 2017, with the order of softmax and choice of Fedus et al. 2021). For J > 1 the chosen p
    are divided by their sum (Lepikhin et al. 2021); model.expert_weights overrides that.

    No expert has a limit, so no token is dropped, and what a token gets depends on the token alone.
    The router computes in fp32, since rounding moves choices (Fedus et al. 2021, section 2.4).
    Every expert runs in every forward, if on nothing, so that ranks which gather its weights stay
    in step. Tensor parallel ranks hold columns of every expert, and choose alike.
    """

    split: Split = WHOLE

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.experts_per_token, self.sum_to_one = config.experts_per_token, config.sum_to_one
        self.router = nn.Linear(config.d_model, config.n_experts, bias=False)
        self.experts = nn.ModuleList(FeedForward(config) for _ in range(config.n_experts))

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """y_BTD, and how unevenly each sequence loads the experts: balance_B."""
        x_BTD = self.split.collect(x_BTD)
        with torch.autocast(x_BTD.device.type, enabled=False):
            p_BTE = F.linear(x_BTD.float(), self.router.weight.float()).softmax(dim=-1)
        weight_BTJ, expert_BTJ = p_BTE.topk(self.experts_per_token, dim=-1)
        if self.sum_to_one:
            weight_BTJ = weight_BTJ / weight_BTJ.sum(dim=-1, keepdim=True)
        x_ND, weight_NJ, expert_NJ = (t.flatten(0, 1) for t in (x_BTD, weight_BTJ, expert_BTJ))
        y_ND = torch.zeros_like(x_ND, dtype=torch.float32)
        for number, expert in enumerate(self.experts):
            token_n, place_n = (expert_NJ == number).nonzero(as_tuple=True)
            y_nD = expert(x_ND[token_n]).float() * weight_NJ[token_n, place_n].unsqueeze(1)
            y_ND = y_ND.index_add(0, token_n, y_nD)
        return self.split.deal(y_ND.to(x_BTD.dtype).view_as(x_BTD)), balance(p_BTE, expert_BTJ)


def balance(p_BTE: Tensor, expert_BTJ: Tensor) -> Tensor:
    """balance_B = E sum_i f_i P_i: f_i the part of a sequence's choices that fell on expert i, P_i
    its mean probability.

    1 when the load is even, E when one expert takes all (Fedus et al. 2021, eq. 4 to 6). It is
    taken of each sequence by itself, not of whatever batch a device holds: so it does not depend on
    micro-batches and ranks.
    """
    n_experts = p_BTE.shape[-1]
    f_BE = F.one_hot(expert_BTJ, n_experts).float().mean(dim=(1, 2))
    return n_experts * (f_BE * p_BTE.mean(dim=1)).sum(dim=-1)
