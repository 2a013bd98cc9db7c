"""How a model knows the order of its tokens: added to the input, or applied in every attention.

Shapes: B batch, T positions, S keys, D d_model, H heads, K d_head, P = K/2 pairs, R relative
positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from scaling.config.plugins import added
from scaling.config.run_config import PositionConfig, RunConfig
from scaling.model.split import WHOLE, Split


class Rotation(NamedTuple):
    """Turns of T positions, for pairs (i, i + K/2) at angle a_i: cosines (a, a) and sines (-a, a),
    T x 1 x K each, fp32. Where a part of a head turns, K is its width."""

    cos_T1K: Tensor
    sin_T1K: Tensor


BiasAt = Callable[[Tensor], Tensor]
"""Maps relative positions (key's minus query's) of any shape (...) to what is added to every head's
score: (H, ...), fp32."""


class Context(NamedTuple):
    """What all layers of a stack share in a forward, beside x.

    rotation      turns queries and keys of the T positions; None: nothing does
    local_rotation  in its place in local layers of attention.pattern; None: theirs is the same
    bias          is added to scores; None: nothing is
    documents_BT  number of each position's document: it looks at positions with the same number
                  only. The positions of a
                  document are neighbours; padding is a document of its own (PADDING in
                  scaling/batch.py). None: a row is one document
    """

    rotation: Rotation | None = None
    bias: BiasAt | None = None
    documents_BT: Tensor | None = None
    local_rotation: Rotation | None = None


def bias_grid(
    bias: BiasAt, q_start: int, n_q: int, k_start: int, n_k: int, device: torch.device
) -> Tensor:
    """bias_HTS of n_q queries from position q_start and n_k keys from k_start: one value a
    distance, laid out."""
    first = k_start - (q_start + n_q - 1)
    by_distance_HR = bias(torch.arange(first, first + n_q + n_k - 1, device=device))
    return by_distance_HR.unfold(1, n_k, 1).flip(1)


class Position(nn.Module):
    """No position at all: only the causal mask tells the order. The others override what they
    add."""

    split: Split = WHOLE

    def __init__(self, config: RunConfig, *, causal: bool = True) -> None:
        super().__init__()

    in_blocks = True
    """Whether every block has a use for its parameters, or their input alone."""

    def needed(self, name: str, begins: bool) -> set[str]:
        """`name` if its parameters are needed by blocks, of which the first is among them if it
        `begins`."""
        return {name} if begins or self.in_blocks else set()

    def embed(self, x_BTD: Tensor, start: int) -> Tensor:
        """The input of the first block; `start` is the position of x_BTD[:, 0]."""
        return x_BTD

    def rotation(self, start: int, length: int, device: torch.device) -> Rotation | None:
        """What turns queries and keys, if anything."""
        return None

    def local_rotation(self, start: int, length: int, device: torch.device) -> Rotation | None:
        """What does so in local layers of a pattern, where it is another."""
        return None

    @property
    def bias(self) -> BiasAt | None:
        """What is added to scores, if anything."""
        return None

    def context(self, start: int, x_BTD: Tensor, documents_BT: Tensor | None = None) -> Context:
        """The context of a stack whose input x_BTD begins at position `start`; it covers all
        positions, of which x may be a part."""
        first, length = self.split.in_attention(start, x_BTD)
        return Context(
            self.rotation(first, length, x_BTD.device),
            self.bias,
            documents_BT,
            self.local_rotation(first, length, x_BTD.device),
        )


class SinusoidalPosition(Position):
    """sin(p theta^(-2i/D)) and its cosine at dims 2i and 2i + 1, added to the token's (Vaswani et
    al. 2017, section 3.5); with position.halves at dims i and D/2 + i (Marian).

    Unlike learned vectors they have no last position.
    """

    def __init__(self, config: RunConfig, *, causal: bool = True) -> None:
        super().__init__(config)
        self.theta, self.halves = config.position.theta, config.position.halves

    def embed(self, x_BTD: Tensor, start: int) -> Tensor:
        T, D = x_BTD.shape[1:]
        even_P = torch.arange(0, D, 2, dtype=torch.float32, device=x_BTD.device)
        position_T = torch.arange(start, start + T, dtype=torch.float32, device=x_BTD.device)
        angle_TP = torch.outer(position_T, self.theta ** (-even_P / D))
        pair = (angle_TP.sin(), angle_TP.cos())
        table_TD = torch.cat(pair, dim=1) if self.halves else torch.stack(pair, dim=-1).flatten(1)
        return x_BTD + table_TD.to(x_BTD.dtype)


class LearnedPosition(Position):
    """One vector a position, of train.seq_len positions, added to the token's (Radford et al.
    2019). The first position's is in row position.first_row: rows before it, which others' weights
    have for padding, are not read."""

    in_blocks = False

    def __init__(self, config: RunConfig, *, causal: bool = True) -> None:
        super().__init__(config)
        self.first_row = config.position.first_row or 0
        self.table = nn.Embedding(self.first_row + config.train.seq_len, config.model.input_width)

    def embed(self, x_BTD: Tensor, start: int) -> Tensor:
        length, limit = x_BTD.shape[1], self.table.num_embeddings - self.first_row
        if start + length > limit:
            raise ValueError(
                f"position=learned knows {limit} positions, and was given {start + length}"
            )
        row = self.first_row + start
        return x_BTD + self.table(torch.arange(row, row + length, device=x_BTD.device))


class RotaryPosition(Position):
    """Pairs (i, i + K/2) of a head turn by position * theta^(-2i/K) (Su et al. 2021; pairs as in
    Llama).

    The angles are computed in fp32 for each forward: a table kept as a buffer would be rounded when
    an engine casts the module to bf16, and 16k positions take less than a block does.
    """

    def __init__(self, config: RunConfig, *, causal: bool = True) -> None:
        super().__init__(config)
        self.position, self.seq_len = config.position, config.train.seq_len
        self.width = self.position.rotary_width(config.model.head_width)
        # Scores grow with their temperature, 0.1 ln(s) + 1 on queries and on keys (Peng et al.
        # 2023, eq. 15).
        factor = self.position.scaling_factor or 1.0
        yarn = self.position.scaling == "yarn"
        usual = 0.1 * math.log(factor) + 1.0 if yarn else 1.0
        self.amplitude = self.position.score_factor or usual

    def rotation(self, start: int, length: int, device: torch.device) -> Rotation:
        frequency_P = rotary_frequencies(self.position, self.width, self.seq_len, device)
        return self._turned(frequency_P, self.amplitude, start, length)

    def local_rotation(self, start: int, length: int, device: torch.device) -> Rotation | None:
        if self.position.local_theta is None:
            return None
        frequency_P = _frequencies(self.position.local_theta, self.width, device)
        return self._turned(frequency_P, 1.0, start, length)

    @staticmethod
    def _turned(frequency_P: Tensor, amplitude: float, start: int, length: int) -> Rotation:
        device = frequency_P.device
        position_T = torch.arange(start, start + length, dtype=torch.float32, device=device)
        angle_T1P = torch.outer(position_T, frequency_P).unsqueeze(1)
        cos_T1P, sin_T1P = angle_T1P.cos(), angle_T1P.sin()
        if amplitude != 1.0:
            cos_T1P, sin_T1P = amplitude * cos_T1P, amplitude * sin_T1P
        return Rotation(
            torch.cat((cos_T1P, cos_T1P), dim=-1), torch.cat((-sin_T1P, sin_T1P), dim=-1)
        )


def rotary_frequencies(
    position: PositionConfig, d_head: int, seq_len: int, device: torch.device
) -> Tensor:
    """Radians a position of each pair of d_head dims, P of them, fp32.

    linear  all divided by the factor s, so that s times the positions span the angles of training
            (Chen et al. 2023,
            arXiv:2306.15595)
    ntk     theta grows by s^(K/(K-2)): the slowest pair is divided by s, the fastest stays
            ("NTK-aware", bloc97 2023;
            Peng et al. 2023, definition 1)
    yarn    pairs that turn less than once in the original length are divided by s, those that turn
            more than 32 times
            stay, and between the two runs a line over the pairs' indices (Peng et al. 2023,
            arXiv:2309.00071, section 3.2; its released code rounds the bounds to whole pairs, and
            so do we); position.slow_turns and fast_turns set other bounds
    llama3  the same with bounds of 1 and 4 turns, and a line over the turns themselves (Llama 3.1's
            code, 2024)
    """
    theta, factor = position.theta, position.scaling_factor or 1.0
    if position.scaling == "ntk":
        theta *= factor ** (d_head / (d_head - 2))
    frequency_P = _frequencies(theta, d_head, device)
    if position.scaling == "linear":
        return frequency_P / factor
    original, (slow, fast) = position.original_seq_len or seq_len / factor, position.turns
    if position.scaling == "llama3":
        turns_P = original * frequency_P / (2 * math.pi)
        kept_P = ((turns_P - slow) / (fast - slow)).clamp(0, 1)
        return frequency_P * kept_P + frequency_P / factor * (1 - kept_P)
    if position.scaling != "yarn":
        return frequency_P
    first, last = (
        d_head * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))
        for turns in (fast, slow)
    )
    first, last = max(math.floor(first), 0), min(math.ceil(last), d_head - 1)
    ramp_P = (torch.arange(d_head // 2, dtype=torch.float32, device=device) - first) / max(
        last - first, 1e-3
    )
    stretched_P = ramp_P.clamp(0, 1)
    return frequency_P * (1 - stretched_P) + frequency_P / factor * stretched_P


def _frequencies(theta: float, width: int, device: torch.device) -> Tensor:
    return theta ** (-torch.arange(0, width, 2, dtype=torch.float32, device=device) / width)


def rotate(x_BTHK: Tensor, rotation: Rotation) -> Tensor:
    """Turn every pair of every head by its position's angle, in fp32; the dtype of x is kept. Where
    the rotation is narrower, the first dims of a head turn (Wang and Komatsuzaki 2021, GPT-J)."""
    width = rotation.cos_T1K.shape[-1]
    if width < x_BTHK.shape[-1]:
        turned, still = x_BTHK[..., :width], x_BTHK[..., width:]
        return torch.cat((rotate(turned, rotation), still), dim=-1)
    swapped_BTHK = x_BTHK.roll(x_BTHK.shape[-1] // 2, dims=-1)
    return (x_BTHK * rotation.cos_T1K + swapped_BTHK * rotation.sin_T1K).to(x_BTHK.dtype)


class AlibiPosition(Position):
    """-m_h |distance| is added to the scores of head h, with fixed slopes m_h (Press et al. 2022,
    arXiv:2108.12409).

    The paper is of causal models; for others, its authors' repository proposes the same slopes to
    both sides, as here.
    """

    def __init__(self, config: RunConfig, *, causal: bool = True) -> None:
        super().__init__(config)
        self.slopes_H = alibi_slopes(config.model.n_heads)

    @property
    def bias(self) -> BiasAt:
        own_H = self.slopes_H[self.split.heads(len(self.slopes_H))]

        def at(relative: Tensor) -> Tensor:
            slopes_H = torch.tensor(own_H, device=relative.device).view(-1, *[1] * relative.ndim)
            return -slopes_H * relative.abs()

        return at


def alibi_slopes(n_heads: int) -> list[float]:
    """2^(-8/n), 2^(-16/n), ... to 2^-8 for n heads, n a power of two; for others those of the next
    lower power, then every other one of the next higher, as in the code of Press et al. 2022."""
    lower = 2 ** int(math.log2(n_heads))
    slopes = [2 ** (-8 * (i + 1) / lower) for i in range(lower)]
    return slopes + [2 ** (-4 * (2 * i + 1) / lower) for i in range(n_heads - lower)]


class RelativeBiasPosition(Position):
    """A learnt number a head and bucket of distances is added to scores, the same in all layers of
    a stack (Raffel et al. 2020).

    The table is looked up once a distance, never once a pair of positions.
    """

    cut: ClassVar = {"table.weight": 1}

    def __init__(self, config: RunConfig, *, causal: bool = True) -> None:
        super().__init__(config)
        self.causal, self.position = causal, config.position
        n_buckets = self.position.n_buckets
        assert n_buckets is not None
        self.table = nn.Embedding(n_buckets, config.model.n_heads)

    @property
    def bias(self) -> BiasAt:
        return lambda relative: self.split.own_bias(
            self.table(self.bucket(relative)).float().movedim(-1, 0)
        )

    def bucket(self, relative: Tensor) -> Tensor:
        """0 to n_buckets - 1: causal ones of the distance to the past, else half of them for each
        direction. The first half of a direction's buckets hold one distance each, the others grow
        by a constant ratio up to max_distance."""
        n, max_distance = self.table.num_embeddings, self.position.max_distance
        assert max_distance is not None
        if self.causal:
            side, distance = torch.zeros_like(relative), (-relative).clamp(min=0)
        else:
            n //= 2
            side, distance = n * (relative > 0).long(), relative.abs()
        exact = n // 2
        ratio = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
        far = (exact + ratio * (n - exact)).long().clamp(max=n - 1)
        return side + torch.where(distance < exact, distance, far)


POSITIONS: dict[str, type[Position]] = {
    "none": Position,
    "sinusoidal": SinusoidalPosition,
    "learned": LearnedPosition,
    "rope": RotaryPosition,
    "alibi": AlibiPosition,
    "relative_bias": RelativeBiasPosition,
}


def position_named(kind: str) -> type[Position]:
    """The class of a kind of this package, or of one that a plugin adds."""
    position: type[Position] = (
        POSITIONS[kind] if kind in POSITIONS else added("positions")[kind].load()
    )
    return position
