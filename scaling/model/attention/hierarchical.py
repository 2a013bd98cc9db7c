"""Words to blocks to the document: near words exactly, far blocks by their means, in T (2 block + T
/ block) scores.

Shapes: B batch, T positions, H = G R query heads, G key/value heads, K d_head, n blocks of C
positions, W near keys, S summaries.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from scaling.config.run_config import RunConfig
from scaling.model.attention.base import Attention
from scaling.model.attention.cache import Cache
from scaling.model.attention.full import attend_all
from scaling.model.attention.sparse import (
    from_blocks,
    gather_near,
    ids_in_blocks,
    joint_softmax,
    near,
    near_scores,
    queries_in_blocks,
    to_blocks,
)
from scaling.model.attention.tiles import sdpa
from scaling.model.position import BiasAt, Context, bias_grid


class HierarchicalAttention(Attention):
    """A position sees the words of its own block and the one before, and each block farther back as
    one summary; without a causal mask also the block after, and summaries of those beyond.

    A summary is the mean of a block's keys and of its values, and counts as many times as it has
    words: its score is the mean of theirs, biases included, plus log(words). So where the scores
    within each far block are equal, this is full attention exactly; else it is the first order of
    it. That a text is words, sentences and a document, each level gathered from the one below, is
    Yang et al. 2016 (Hierarchical Attention Networks); exact neighbouring blocks with averaged far
    ones are H-Transformer-1D's (Zhu and Soricut 2021, arXiv:2107.11906), which has more levels,
    means of queries too, and log T of them. One level of blocks, unaveraged queries, and log(words)
    in the score are ours.

    Where documents share a row, a block is to others the mean of its words of the document that
    continues towards them.
    """

    def __init__(
        self, config: RunConfig, *, causal: bool = True, scale: float | None = None
    ) -> None:
        super().__init__(config, causal=causal, scale=scale)
        assert config.attention.block is not None
        self.block = config.attention.block

    def attend(self, q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, context: Context) -> Tensor:
        T, G, C = q_BHTK.shape[2], k_BGTK.shape[1], self.block
        if T <= 2 * C:
            return attend_all(
                q_BHTK, k_BGTK, v_BGTK, context, self.causal, self.scale, self.dropout_p
            )
        q_BGnRCK = queries_in_blocks(q_BHTK * (self.scale or self.d_head**-0.5), G, C)
        k_BGnCK, v_BGnCK = to_blocks(k_BGTK, C), to_blocks(v_BGTK, C)
        ids_BnC = ids_in_blocks(context.documents_BT, T, C, q_BHTK.device)
        k_BGSK, v_BGSK, start_BS, words_BS, seen_BnCS = self._summaries(k_BGnCK, v_BGnCK, ids_BnC)
        far_BGnRCS = (
            torch.einsum("bgnrck,bgsk->bgnrcs", q_BGnRCK, k_BGSK)
            + words_BS.log()[:, None, None, None, None]
        )
        if context.bias is not None:
            bias_HBnCS = _mean_bias(context.bias, start_BS, words_BS, *ids_BnC.shape[1:])
            far_BGnRCS = far_BGnRCS + bias_HBnCS.unflatten(0, (G, -1)).permute(2, 0, 3, 1, 4, 5)
        far_BGnRCS = far_BGnRCS.masked_fill(~seen_BnCS[:, None, :, None], float("-inf"))
        near_BGnRCW = near_scores(
            q_BGnRCK, near(k_BGnCK, self.causal), ids_BnC, None, self.causal, context
        )
        near_BGnRCW, far_BGnRCS = joint_softmax(
            near_BGnRCW, far_BGnRCS, self.dropout_p, v_BGTK.dtype
        )
        y_BGnRCK = gather_near(near_BGnRCW, near(v_BGnCK, self.causal))
        return from_blocks(y_BGnRCK + torch.einsum("bgnrcs,bgsk->bgnrck", far_BGnRCS, v_BGSK), T)

    def _summaries(self, k_BGnCK: Tensor, v_BGnCK: Tensor, ids_BnC: Tensor) -> tuple[Tensor, ...]:
        """Keys, values, first positions and numbers of words of the summaries, and which queries
        see them: those for later blocks, of each block's last document, and without a causal mask
        those for earlier blocks, of its first."""
        n, C = ids_BnC.shape[1:]
        block_n = torch.arange(n, device=ids_BnC.device)
        relative_nn = block_n - block_n.unsqueeze(1)
        sides = [(ids_BnC[:, :, -1], relative_nn < -1)]
        if not self.causal:
            sides.append((ids_BnC[:, :, 0], relative_nn > 1))
        ks, vs, words, seen = [], [], [], []
        starts: list[Tensor] = []
        for id_Bn, far_nn in sides:
            member_BnC = (ids_BnC == id_Bn.unsqueeze(2)).float()
            words_Bn = member_BnC.sum(dim=2)
            share_BnC = (member_BnC / words_Bn.unsqueeze(2)).to(k_BGnCK.dtype)
            ks.append((k_BGnCK * share_BnC[:, None, ..., None]).sum(dim=3))
            vs.append((v_BGnCK * share_BnC[:, None, ..., None]).sum(dim=3))
            starts.append(block_n * C + (0 if starts else C - words_Bn.long()))
            words.append(words_Bn)
            seen.append((ids_BnC.unsqueeze(3) == id_Bn[:, None, None]) & far_nn.unsqueeze(1))
        starts = [start_Bn.expand_as(words[0]) for start_Bn in starts]
        return (
            torch.cat(ks, 2),
            torch.cat(vs, 2),
            torch.cat(starts, 1),
            torch.cat(words, 1),
            torch.cat(seen, 3),
        )

    def remember(self, k_BGTK: Tensor, v_BGTK: Tensor, cache: Cache) -> None:
        assert isinstance(cache, BlockCache)
        cache.append(k_BGTK, v_BGTK)

    def step(
        self, q_BH1K: Tensor, k_BG1K: Tensor, v_BG1K: Tensor, context: Context, cache: Cache
    ) -> Tensor:
        assert isinstance(cache, BlockCache)
        k_BGsK, v_BGsK, n_summaries = cache.append(k_BG1K, v_BG1K)
        C, near_start, last = self.block, n_summaries * self.block, cache.length - 1
        mask_1s = torch.zeros(1, k_BGsK.shape[2], device=q_BH1K.device)
        mask_1s[:, :n_summaries] = math.log(C)
        if context.bias is not None:
            relative_S = torch.arange(near_start, device=q_BH1K.device) - last
            far_HS = context.bias(relative_S).unflatten(1, (n_summaries, C)).mean(dim=2)
            near_HW = bias_grid(
                context.bias, last, 1, near_start, cache.length - near_start, q_BH1K.device
            )[:, 0]
            mask_1s = (mask_1s + torch.cat((far_HS, near_HW), dim=1)).unsqueeze(1)
        return sdpa(q_BH1K, k_BGsK, v_BGsK, mask_1s, self.scale, self.dropout_p)

    def new_cache(self, capacity: int) -> BlockCache:
        return BlockCache(self.block)


def _mean_bias(bias: BiasAt, start_BS: Tensor, words_BS: Tensor, n: int, C: int) -> Tensor:
    """bias_HBnCS of each query and summary: the mean of what its words would get, by differences of
    sums over distances."""
    T = n * C
    sums_HR = F.pad(
        bias(torch.arange(1 - T, T, device=start_BS.device)).double().cumsum(dim=1), (1, 0)
    )
    position_T1 = torch.arange(T, device=start_BS.device).unsqueeze(1)
    index_BTS = start_BS.unsqueeze(1) - position_T1 + T - 1
    total_HBTS = sums_HR[:, index_BTS + words_BS.long().unsqueeze(1)] - sums_HR[:, index_BTS]
    return (total_HBTS.float() / words_BS.unsqueeze(1)).unflatten(2, (n, C))


class BlockCache(Cache):
    """Summaries of far blocks, and the words of the latest two: T / block + 2 block keys and
    values."""

    def __init__(self, block: int) -> None:
        self.block, self.length, self._n_summaries = block, 0, 0
        self._kv: tuple[Tensor, Tensor] | None = None

    def append(self, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor, int]:
        """Store T more positions; return all that is kept, summaries first, and how many those
        are."""
        self.length += k_BGTK.shape[2]
        far = max(0, -(-self.length // self.block) - 2)
        new = (k_BGTK, v_BGTK)
        kept = (
            new
            if self._kv is None
            else tuple(torch.cat(pair, dim=2) for pair in zip(self._kv, new, strict=True))
        )
        k_BGsK, v_BGsK = (self._summarise(t, far - self._n_summaries) for t in kept)
        self._kv, self._n_summaries = (k_BGsK, v_BGsK), far
        return k_BGsK, v_BGsK, far

    def _summarise(self, x_BGsK: Tensor, n_new: int) -> Tensor:
        """The first `n_new` blocks of words become their means."""
        if n_new == 0:
            return x_BGsK
        start, end = self._n_summaries, self._n_summaries + n_new * self.block
        mean_BGnK = x_BGsK[:, :, start:end].unflatten(2, (n_new, self.block)).mean(dim=3)
        return torch.cat((x_BGsK[:, :, :start], mean_BGnK, x_BGsK[:, :, end:]), dim=2)

    def select(self, index_B: Tensor) -> None:
        if self._kv is not None:
            self._kv = (self._kv[0][index_B], self._kv[1][index_B])
