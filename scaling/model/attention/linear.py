"""Attention without softmax, in time and memory linear in T, with a state of constant size for
generation.

Shapes: B batch, T positions, S of a source, H = G R query heads, G key/value heads, K d_head, V
values a position, n chunks of C positions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from scaling.config.tile_sizes import LINEAR_CHUNK, PIECE
from scaling.model.attention.base import Attention
from scaling.model.attention.cache import Cache
from scaling.model.attention.full import CrossAttention, KeyValues
from scaling.model.attention.sparse import BEYOND, from_blocks, queries_in_blocks, to_blocks
from scaling.model.position import Context, Rotation, rotate

EPS = 1e-6
"""Added to the denominator, as in the code of Katharopoulos et al. 2020."""


def features(x: Tensor) -> Tensor:
    """elu(x) + 1, positive, in fp32 (Katharopoulos et al. 2020, eq. 7)."""
    return F.elu(x.float()) + 1


class State(NamedTuple):
    """Sums over the past of outer products of key features with values, and of key features."""

    kv_BGKV: Tensor
    k_BGK1: Tensor


class LinearCache(Cache):
    """The state of a layer: K (K + 1) numbers a head, however long the text."""

    def __init__(self) -> None:
        self.length = 0
        self.state: State | None = None

    def select(self, index_B: Tensor) -> None:
        if self.state is not None:
            self.state = State(*(t[index_B] for t in self.state))


class LinearAttention(Attention):
    """y_t = sum_s (f(q_t) f(k_s)) v_s / sum_s f(q_t) f(k_s), f = elu + 1 (Katharopoulos et al.
    2020, arXiv:2006.16236).

    Scores are not divided by sqrt(K), as in the paper: with `scale`, queries are multiplied by it
    first. Rotary positions turn the features in the numerator only, so that the denominator stays
    positive (Su et al. 2021, eq. 19). Sums are in fp32.

    ALiBi's -m |t - s|, which softmax would make a factor exp(-m |t - s|), is that factor here: sums
    that fade with distance, as in Sun et al. 2023 (arXiv:2307.08621, eq. 5). Heads that share keys
    then need sums of their own.
    """

    def turn(self, x_BTHK: Tensor, rotation: Rotation) -> Tensor:
        return x_BTHK  # features are turned, not what they are made of

    def attend(self, q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, context: Context) -> Tensor:
        return self._sums(q_BHTK, k_BGTK, v_BGTK, context, None)[0]

    def decode(
        self, q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, context: Context, cache: Cache
    ) -> Tensor:
        """Any number of new positions at once; one costs K (K + 1) products a head, whatever the
        length."""
        assert isinstance(cache, LinearCache)
        y_BHTK, state = self._sums(q_BHTK, k_BGTK, v_BGTK, context, cache.state)
        # views would keep the sums of every chunk
        cache.state = State(*(sums.clone() for sums in state))
        cache.length += q_BHTK.shape[2]
        return y_BHTK

    def new_cache(self, capacity: int) -> LinearCache:
        return LinearCache()

    def _sums(
        self, q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, context: Context, state: State | None
    ) -> tuple[Tensor, State]:
        """y_BHTK, and the state after the last position."""
        dtype, rotation = v_BGTK.dtype, context.rotation
        with torch.autocast(q_BHTK.device.type, enabled=False):
            q_BHTK = features(q_BHTK if self.scale is None else q_BHTK * self.scale)
            k_BGTK, v_BGTK = features(k_BGTK), v_BGTK.float()
            fading_H = None
            # ALiBi's alone is let in: at distance 1 it is minus the slope
            if context.bias is not None:
                fading_H = context.bias(torch.ones((), device=q_BHTK.device))
                R = q_BHTK.shape[1] // k_BGTK.shape[1]
                k_BGTK, v_BGTK = (
                    k_BGTK.repeat_interleave(R, dim=1),
                    v_BGTK.repeat_interleave(R, dim=1),
                )
            one_BGT1 = torch.ones_like(k_BGTK[..., :1])
            kv, k1 = (None, None) if state is None else state
            if rotation is None:
                start = None if state is None else torch.cat(state, dim=3)
                with_one = torch.cat((v_BGTK, one_BGT1), dim=3)
                both, after = self._sum(
                    q_BHTK, k_BGTK, with_one, context.documents_BT, start, fading_H
                )
                y_BHTK, norm_BHT1 = both[..., :-1], both[..., -1:]
                state = State(after[..., :-1], after[..., -1:])
            else:
                turned_q, turned_k = (
                    rotate(x.transpose(1, 2), rotation).transpose(1, 2) for x in (q_BHTK, k_BGTK)
                )
                y_BHTK, kv = self._sum(turned_q, turned_k, v_BGTK, context.documents_BT, kv)
                norm_BHT1, k1 = self._sum(q_BHTK, k_BGTK, one_BGT1, context.documents_BT, k1)
                state = State(kv, k1)
            return (y_BHTK / (norm_BHT1 + EPS)).to(dtype), state

    def _sum(
        self,
        q_BHTK: Tensor,
        k_BGTK: Tensor,
        v_BGTV: Tensor,
        documents_BT: Tensor | None,
        start_BGKV: Tensor | None,
        fading_H: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """sum_s (q_t k_s) v_s for every t, and sum_s k_s v_s^T over the sequence (of the last
        document)."""
        if self.causal:
            return past_sum(q_BHTK, k_BGTK, v_BGTV, documents_BT, start_BGKV, fading_H)
        if documents_BT is None and fading_H is None:
            kv_BGKV = k_BGTK.transpose(2, 3) @ v_BGTV
            q_BGRTK = q_BHTK.unflatten(1, (k_BGTK.shape[1], -1))
            return (q_BGRTK @ kv_BGKV.unsqueeze(2)).flatten(1, 2), kv_BGKV
        # The past with the present, and the future without it, which is the past of the reversed
        # row less the present.
        past_BHTV, kv_BGKV = past_sum(q_BHTK, k_BGTK, v_BGTV, documents_BT, None, fading_H)
        q_BHTK, k_BGTK, v_BGTV = q_BHTK.flip(2), k_BGTK.flip(2), v_BGTV.flip(2)
        documents_BT = None if documents_BT is None else documents_BT.flip(1)
        future_BHTV, _ = past_sum(
            q_BHTK, k_BGTK, v_BGTV, documents_BT, None, fading_H, strictly=True
        )
        return past_BHTV + future_BHTV.flip(2), kv_BGKV


def past_sum(
    q_BHTK: Tensor,
    k_BGTK: Tensor,
    v_BGTV: Tensor,
    documents_BT: Tensor | None,
    start_BGKV: Tensor | None,
    fading_H: Tensor | None = None,
    *,
    strictly: bool = False,
) -> tuple[Tensor, Tensor]:
    """y_BHTV = sum over s <= t (s < t if strictly) of (q_t k_s) v_s within documents, and the state
    after the last position.

    Pairs within a chunk are formed; what came before it is a sum of outer products, one for each
    chunk. `start_BGKV` is that sum before the first position (without documents). With `fading_H`
    (then G = H) a product of positions d apart is multiplied by exp(d fading_H), in the state too.
    """
    T, G = q_BHTK.shape[2], k_BGTK.shape[1]
    C = min(LINEAR_CHUNK, T)
    q_BGnRCK = queries_in_blocks(q_BHTK, G, C)
    k_BGnCK, v_BGnCV = to_blocks(k_BGTK, C), to_blocks(v_BGTV, C)
    seen = torch.ones(C, C, dtype=torch.bool, device=q_BHTK.device).tril(-1 if strictly else 0)
    fading = None if fading_H is None else Fading.of(fading_H, T, C)
    if documents_BT is None and fading is None:
        kv_BGnKV = (k_BGnCK.transpose(3, 4) @ v_BGnCV).cumsum(dim=2)
        before_BGnKV = F.pad(kv_BGnKV[:, :, :-1], (0, 0, 0, 0, 1, 0))
        if start_BGKV is not None:
            before_BGnKV, kv_BGnKV = (
                before_BGnKV + start_BGKV.unsqueeze(2),
                kv_BGnKV + start_BGKV.unsqueeze(2),
            )
        q_past_BGnRCK, last_BGKV = q_BGnRCK, kv_BGnKV[:, :, -1]
    else:
        if documents_BT is None:
            documents_BT = torch.zeros(q_BHTK.shape[0], T, dtype=torch.long, device=q_BHTK.device)
        # has no keys, and lets the last state be of the last document
        filling = documents_BT[:, -1:].expand(-1, -T % C)
        ids_BnC = torch.cat((documents_BT, filling), dim=1).unflatten(1, (-1, C))
        before_BGnKV, last_BGKV, goes_on_BnC = _document_sums(
            k_BGnCK, v_BGnCV, ids_BnC, fading, start_BGKV
        )
        q_past_BGnRCK = q_BGnRCK * goes_on_BnC[:, None, :, None, :, None]
        if fading is not None:
            q_past_BGnRCK = q_past_BGnRCK * fading.past_HC[:, None, None, :, None]
        seen = (seen & (ids_BnC.unsqueeze(3) == ids_BnC.unsqueeze(2)))[:, None, :, None]
    R = q_BGnRCK.shape[3]
    pairs_BGnRCC = (q_BGnRCK.flatten(3, 4) @ k_BGnCK.transpose(3, 4)).unflatten(3, (R, C)) * seen
    if fading is not None:
        pairs_BGnRCC = pairs_BGnRCC * fading.pairs_HCC[:, None, None]
    y_BGnMV = pairs_BGnRCC.flatten(3, 4) @ v_BGnCV + q_past_BGnRCK.flatten(3, 4) @ before_BGnKV
    return from_blocks(y_BGnMV.unflatten(3, (R, C)), T), last_BGKV


class Fading(NamedTuple):
    """exp(distance * fading_H) of what meets in n chunks of C positions, of which the last may be
    shorter.

    pairs_HCC of two positions of a chunk (of a later and an earlier one; the others are not seen),
    past_HC of a position and the last one of the chunk before, own_HnC of a chunk's last position
    and each of its own, whole_Hn of the last ones of two chunks.
    """

    pairs_HCC: Tensor
    past_HC: Tensor
    own_HnC: Tensor
    whole_Hn: Tensor

    @staticmethod
    def of(fading_H: Tensor, T: int, C: int) -> Fading:
        at_C = torch.arange(C, device=fading_H.device)
        length_n = torch.full((-(-T // C),), C, device=fading_H.device)
        length_n[-1] = T - C * (len(length_n) - 1)

        def factor(distance: Tensor) -> Tensor:
            return torch.exp(fading_H.view(-1, *[1] * distance.ndim) * distance.clamp(min=0))

        return Fading(
            factor(at_C[:, None] - at_C),
            factor(at_C + 1),
            factor(length_n[:, None] - 1 - at_C),
            factor(length_n),
        )


def _document_sums(
    k_BGnCK: Tensor,
    v_BGnCV: Tensor,
    ids_BnC: Tensor,
    fading: Fading | None,
    start_BGKV: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum k v^T before each chunk over the document that the chunk before ended in. Returns these
    sums, the sum after the last chunk, and which positions are of that document. The sum continues
    through chunks that end in one document, and else restarts; it begins with `start_BGKV`, which
    is of the first document."""
    last_Bn = ids_BnC[:, :, -1]
    member_BnC = (ids_BnC == last_Bn.unsqueeze(2)).to(k_BGnCK.dtype)
    weight = member_BnC[:, None] if fading is None else member_BnC[:, None] * fading.own_HnC
    own_BGnKV = (k_BGnCK * weight[..., None]).transpose(3, 4) @ v_BGnCV
    first_B = torch.full_like(ids_BnC[:, 0, 0], BEYOND) if start_BGKV is None else ids_BnC[:, 0, 0]
    before_Bn = torch.cat((first_B[:, None], last_Bn[:, :-1]), dim=1)
    keep_BGn = (last_Bn == before_Bn).to(k_BGnCK.dtype)[:, None]
    keep_BGn = keep_BGn if fading is None else keep_BGn * fading.whole_Hn
    states = [torch.zeros_like(own_BGnKV[:, :, 0]) if start_BGKV is None else start_BGKV]
    for chunk in range(own_BGnKV.shape[2]):
        states.append(states[-1] * keep_BGn[:, :, chunk, None, None] + own_BGnKV[:, :, chunk])
    goes_on_BnC = (ids_BnC == before_Bn.unsqueeze(2)).to(k_BGnCK.dtype)
    return torch.stack(states[:-1], dim=2), states[-1], goes_on_BnC


class LinearCrossAttention(CrossAttention):
    """The same kernel between a target and a source: (T + S) K^2 products a head, and one state for
    the whole source.

    Where documents share a row, each target looks at its own part of the source: those products are
    formed pair by pair.
    """

    def source(self, source_BSD: Tensor) -> KeyValues:
        k_BGSK, v_BGSK, _ = super().source(source_BSD)
        with torch.autocast(source_BSD.device.type, enabled=False):
            k_BGSK, v_BGS1 = features(k_BGSK), F.pad(v_BGSK.float(), (0, 1), value=1.0)
            return KeyValues(k_BGSK, v_BGS1, k_BGSK.transpose(2, 3) @ v_BGS1)

    def attend(
        self,
        q_BHTK: Tensor,
        source: KeyValues,
        documents_BT: Tensor | None,
        source_documents_BS: Tensor | None,
    ) -> Tensor:
        dtype, G = q_BHTK.dtype, source.k_BGSK.shape[1]
        with torch.autocast(q_BHTK.device.type, enabled=False):
            q_BGRTK = features(q_BHTK if self.scale is None else q_BHTK * self.scale).unflatten(
                1, (G, -1)
            )
            if documents_BT is None or source_documents_BS is None:
                assert source.sum_BGKV is not None
                both_BGRTV = q_BGRTK @ source.sum_BGKV.unsqueeze(2)
            else:
                same_B11TS = (documents_BT.unsqueeze(2) == source_documents_BS.unsqueeze(1))[
                    :, None, None
                ]
                pieces = zip(
                    q_BGRTK.split(PIECE, dim=3), same_B11TS.split(PIECE, dim=3), strict=True
                )
                both_BGRTV = torch.cat(
                    [
                        ((q @ source.k_BGSK.unsqueeze(2).mT) * same) @ source.v_BGSK.unsqueeze(2)
                        for q, same in pieces
                    ],
                    dim=3,
                )
            return (both_BGRTV[..., :-1] / (both_BGRTV[..., -1:] + EPS)).flatten(1, 2).to(dtype)
