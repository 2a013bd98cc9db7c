"""The groups `attention` and `position`, and which of their choices go together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from scaling.config.plugins import added, known
from scaling.config.section import Section, at_most

ATTENTION_KINDS = ("full", "gqa", "mqa", "relative", "local", "strided", "linear", "hierarchical")
POSITION_KINDS = ("none", "sinusoidal", "learned", "rope", "alibi", "relative_bias")

AttentionKind = Annotated[str, AfterValidator(known("attentions", ATTENTION_KINDS))]
PositionKind = Annotated[str, AfterValidator(known("positions", POSITION_KINDS))]

_ATTENTION_KEYS: dict[str, tuple[str, ...]] = {
    "gqa": ("n_kv_heads",),
    "relative": ("max_distance", "relative_values"),
    "local": ("window",),
    "strided": ("stride",),
    "hierarchical": ("block",),
}
"""The keys, of those that may be null, which a kind of attention reads."""

CAPPED = ("full", "gqa", "mqa", "local")
"""Kinds that can cap scores: the others form theirs in ways of their own."""
PATTERNED = ("full", "gqa", "mqa")
"""Kinds that attention.pattern can mix with local."""

_POSITION_KEYS: dict[str, tuple[str, ...]] = {
    "rope": (
        "scaling",
        "scaling_factor",
        "original_seq_len",
        "slow_turns",
        "fast_turns",
        "score_factor",
        "rotary_fraction",
        "local_theta",
    ),
    "learned": ("first_row",),
    "sinusoidal": ("halves",),
    "relative_bias": ("n_buckets", "max_distance"),
}

_MAY_BE_NULL = (
    "n_kv_heads",
    "stride",
    *_POSITION_KEYS["rope"],
    *_POSITION_KEYS["learned"],
    *_POSITION_KEYS["sinusoidal"],
)
"""Keys that their readers can do without."""


_Theta = Annotated[float, at_most(1e12, "and every wavelength but the first would exceed any text")]
_Cap = Annotated[float, at_most(1e6, "which no score reaches; null: no cap")]
_ScoreWidth = Annotated[float, at_most(1e12, "beside which no score would count")]
_Turns = Annotated[float, at_most(1e9, "and no pair turns that often in a text")]
_ScoreFactor = Annotated[float, at_most(1e3, "and a softmax of such scores picks one position")]
_ScalingFactor = Annotated[float, at_most(1e6, "and no text is that much longer")]


class AttentionConfig(Section):
    """How positions look at one another. See docs/attention.md for formulas, sources and costs."""

    kind: AttentionKind = Field(
        description="full: every position; gqa, mqa: full with fewer, or one, key/value heads; "
        "relative: full with learnt vectors of distances; local: a sliding window; "
        "strided: a window and every stride-th position; linear: kernelised, without softmax; "
        "hierarchical: blocks exactly, further ones by their means"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on attention weights")
    n_kv_heads: int | None = Field(
        None,
        gt=0,
        description="gqa: key/value heads; null: a fourth of n_heads, half where there are fewer "
        "than 8",
    )
    max_distance: int | None = Field(
        None, gt=0, description="relative: distances from this one on share a vector"
    )
    relative_values: bool | None = Field(
        None, description="relative: vectors of distances for the values too"
    )
    window: int | None = Field(
        None, gt=0, description="local: positions seen to one side, the own one counted"
    )
    pattern: tuple[Literal["local", "full"], ...] | None = Field(
        None,
        min_length=1,
        max_length=10_000,
        description="full, gqa, mqa: kinds of successive layers, over and over, "
        "as [local,local,full]; null: all alike",
    )
    score_cap: _Cap | None = Field(
        None, gt=0, description="scores x become cap tanh(x / cap) before masks (Gemma Team 2024)"
    )
    score_width: _ScoreWidth | None = Field(
        None, gt=0, description="scores are divided by its root; null: d_head (in t5: 1)"
    )
    stride: int | None = Field(
        None,
        gt=1,
        description="strided: window, and step between farther ones; null: root of seq_len",
    )
    block: int | None = Field(None, gt=1, description="hierarchical: positions of a block")

    @model_validator(mode="after")
    def _keys(self) -> Self:
        readers = _readers(_ATTENTION_KEYS, "attentions")
        if self.pattern is not None:
            if self.kind not in PATTERNED:
                raise ValueError(
                    f"attention.pattern says which layers are local, and attention={self.kind} is"
                    f" another kind; use attention={' or '.join(PATTERNED)}"
                )
            if "local" in self.pattern:
                readers[self.kind] = (*readers.get(self.kind, ()), "window")
        if self.score_cap is not None and self.kind not in CAPPED:
            raise ValueError(
                f"attention={self.kind} does not cap scores; attention.score_cap is for"
                f" attention={', '.join(CAPPED)}"
            )
        _check_keys(self, "attention", self.kind, readers)
        if self.kind == "linear" and self.dropout:
            raise ValueError(
                "attention=linear forms no attention weights that attention.dropout could drop; "
                "use model.dropout"
            )
        return self

    def kind_at(self, layer: int) -> str:
        """The kind of a stack's layer."""
        if self.pattern is None or self.pattern[layer % len(self.pattern)] == "full":
            return self.kind
        return "local"

    def stride_for(self, seq_len: int) -> int:
        """The stride of strided attention: n^(1/2) makes the cost n^(3/2) (Child et al. 2019,
        section 4.2)."""
        return self.stride or max(2, math.isqrt(seq_len - 1) + 1)

    def kv_heads_for(self, n_heads: int, given: int | None) -> int | None:
        """Key/value heads of a model that has `given` (null: not said). Raises ValueError on a
        contradiction."""
        if self.kind == "mqa":
            wanted, where = 1, "attention=mqa has 1"
        elif self.kind == "gqa":
            parts = 4 if n_heads >= 8 else 2
            if self.n_kv_heads is None and n_heads % parts:
                raise ValueError(
                    f"attention=gqa would take n_heads / {parts}, but n_heads={n_heads}: "
                    "give attention.n_kv_heads"
                )
            wanted = self.n_kv_heads or n_heads // parts
            where = f"attention=gqa has {wanted}"
            if n_heads % wanted:
                raise ValueError(f"attention.n_kv_heads={wanted} does not divide n_heads={n_heads}")
        else:
            return given
        if given not in (None, wanted):
            raise ValueError(
                f"model.n_kv_heads={given}, but {where} key/value heads; "
                "leave model.n_kv_heads null, or use attention=full"
            )
        return wanted


class PositionConfig(Section):
    """How a model knows the order of its tokens."""

    kind: PositionKind = Field(
        description="none: the causal mask alone; sinusoidal, learned: a vector a position, "
        "added to the input; rope: rotated queries and keys; "
        "alibi, relative_bias: a fixed, or learnt, number a head and distance, added to scores"
    )
    theta: _Theta = Field(10000.0, gt=1, description="rope, sinusoidal: base of the wavelengths")
    scaling: Literal["linear", "ntk", "yarn", "llama3"] | None = Field(
        None, description="rope: how to reach beyond the length of training; null: not at all"
    )
    scaling_factor: _ScalingFactor | None = Field(
        None, gt=1, description="rope: longer by this factor"
    )
    original_seq_len: int | None = Field(
        None,
        gt=1,
        description="yarn, llama3: length before scaling; null: train.seq_len / scaling_factor",
    )
    slow_turns: _Turns | None = Field(
        None,
        gt=0,
        description="yarn, llama3: pairs that turn less often in that length are divided by the "
        "factor; null: 1",
    )
    fast_turns: _Turns | None = Field(
        None,
        gt=0,
        description="yarn, llama3: pairs that turn more often stay; null: yarn 32, llama3 4",
    )
    score_factor: _ScoreFactor | None = Field(
        None,
        gt=0,
        description="yarn: factor on queries and on keys; null: 0.1 ln(scaling_factor) + 1",
    )
    rotary_fraction: float | None = Field(
        None, gt=0, le=1, description="rope: part of a head that turns; null: all of it"
    )
    local_theta: _Theta | None = Field(
        None,
        gt=1,
        description="rope: theta of the local layers of attention.pattern, which do not scale; "
        "null: as the others",
    )
    first_row: int | None = Field(
        None,
        ge=0,
        le=2**20,
        description="learned: row of the table that is the first position's; null: 0",
    )
    halves: bool | None = Field(
        None, description="sinusoidal: all sines, then all cosines; null: in turn"
    )
    n_buckets: int | None = Field(None, gt=3, description="relative_bias: classes of distances")
    max_distance: int | None = Field(
        None, gt=1, description="relative_bias: distances from this one on share a class"
    )

    @model_validator(mode="after")
    def _keys(self) -> Self:
        _check_keys(self, "position", self.kind, _readers(_POSITION_KEYS, "positions"))
        if (self.scaling is None) != (self.scaling_factor is None):
            raise ValueError(
                "position.scaling and position.scaling_factor need each other: give both or neither"
            )
        for key, users in (
            ("original_seq_len", ("yarn", "llama3")),
            ("slow_turns", ("yarn", "llama3")),
            ("fast_turns", ("yarn", "llama3")),
            ("score_factor", ("yarn",)),
        ):
            if getattr(self, key) is not None and self.scaling not in users:
                raise ValueError(
                    f"position.{key} is set, but only position.scaling={' or '.join(users)} reads "
                    "it"
                )
        slow, fast = self.turns
        if slow >= fast:
            raise ValueError(
                f"position.slow_turns={slow:g} must be below position.fast_turns={fast:g}"
            )
        if self.n_buckets is not None and self.max_distance is not None:
            if self.n_buckets % 4:
                raise ValueError(
                    f"position.n_buckets={self.n_buckets} must be a multiple of 4: half a side, "
                    "and half of that near"
                )
            if self.max_distance <= self.n_buckets // 2:
                raise ValueError(
                    f"position.max_distance={self.max_distance} must be above position.n_buckets / "
                    f"2 = {self.n_buckets // 2}, the distances that have a bucket of their own"
                )
        return self

    @property
    def turns(self) -> tuple[float, float]:
        """Turns in the original length below which a pair is stretched, and above which it
        stays (Peng et al. 2023, section 3.2; Llama 3's code)."""
        fast = 4.0 if self.scaling == "llama3" else 32.0
        return self.slow_turns or 1.0, self.fast_turns or fast

    def rotary_width(self, d_head: int) -> int:
        """Dims of a head that turn."""
        return int(d_head * (self.rotary_fraction or 1.0))


def _readers(own: Mapping[str, tuple[str, ...]], concept: str) -> dict[str, tuple[str, ...]]:
    """Kind -> the keys that it reads, those of plugins included."""
    return {**own, **{name: kind.reads for name, kind in added(concept).items()}}


def _check_keys(
    section: Section, group: str, kind: str, readers: dict[str, tuple[str, ...]]
) -> None:
    """Raise ValueError for a key that the kind does not read, or one that it cannot do without."""
    for key in {key: None for keys in readers.values() for key in keys}:
        is_set, is_read = getattr(section, key) is not None, key in readers.get(kind, ())
        if is_set and not is_read:
            users = " and ".join(f"{group}={name}" for name, keys in readers.items() if key in keys)
            raise ValueError(
                f"{group}.{key} is set, but {group}={kind} does not read it, only {users}"
            )
        if is_read and not is_set and key not in _MAY_BE_NULL:
            raise ValueError(f"{group}={kind} needs {group}.{key}")


def check_combination(
    attention: AttentionConfig, position: PositionConfig, *, d_model: int, d_head: int
) -> None:
    """Raise ValueError, with the reason and what works, for choices that do not go together."""
    if attention.kind == "linear" and position.kind == "relative_bias":
        raise ValueError(
            "position=relative_bias adds any number to each score before the softmax, "
            "and attention=linear, which sums over the past once, has room for one that grows with "
            "distance alone; use position=alibi, rope, sinusoidal, learned or none"
        )
    if attention.kind == "relative" and position.kind == "rope":
        raise ValueError(
            "position=rope turns queries by their absolute position, and attention=relative "
            "multiplies them with vectors of distances, which then would depend on it; "
            "use position=none, or attention=full"
        )
    if position.kind == "rope" and d_head % 2 and position.rotary_fraction is None:
        raise ValueError(
            f"position=rope rotates pairs, but the heads are {d_head} wide; make d_head even"
        )
    width = position.rotary_width(d_head)
    if position.rotary_fraction is not None and (width < 2 or width % 2):
        raise ValueError(
            f"position.rotary_fraction={position.rotary_fraction:g} turns {width} of the {d_head} "
            "dims of a head; it must turn an even number, at least 2"
        )
    if position.local_theta is not None and "local" not in (attention.pattern or ()):
        raise ValueError(
            "position.local_theta is set, but attention.pattern has no local layers that would "
            "read it"
        )
    if position.kind == "sinusoidal" and d_model % 2:
        raise ValueError(
            f"position=sinusoidal has pairs of sine and cosine, but d_model={d_model} is odd"
        )
