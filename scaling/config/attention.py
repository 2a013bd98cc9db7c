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

_POSITION_KEYS: dict[str, tuple[str, ...]] = {
    "rope": ("scaling", "scaling_factor", "original_seq_len"),
    "relative_bias": ("n_buckets", "max_distance"),
}

_MAY_BE_NULL = ("n_kv_heads", "stride", "scaling", "scaling_factor", "original_seq_len")
"""Keys that their readers can do without."""


_Theta = Annotated[float, at_most(1e12, "and every wavelength but the first would exceed any text")]
_ScalingFactor = Annotated[float, at_most(1e6, "and no text is that much longer")]


class AttentionConfig(Section):
    """How positions look at one another. See docs/attention.md for formulas, sources and costs."""

    kind: AttentionKind = Field(
        description="full: every position; gqa, mqa: full with fewer, or one, key/value heads; relative: full with learnt "
        "vectors of distances; local: a sliding window; strided: a window and every stride-th position; linear: "
        "kernelised, without softmax; hierarchical: blocks exactly, further ones by their means"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on attention weights")
    n_kv_heads: int | None = Field(
        None,
        gt=0,
        description="gqa: key/value heads; null: a fourth of n_heads, half where there are fewer than 8",
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
    stride: int | None = Field(
        None,
        gt=1,
        description="strided: window, and step between farther ones; null: root of seq_len",
    )
    block: int | None = Field(None, gt=1, description="hierarchical: positions of a block")

    @model_validator(mode="after")
    def _keys(self) -> Self:
        _check_keys(self, "attention", self.kind, _readers(_ATTENTION_KEYS, "attentions"))
        if self.kind == "linear" and self.dropout:
            raise ValueError(
                "attention=linear forms no attention weights that attention.dropout could drop; use model.dropout"
            )
        return self

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
                    f"attention=gqa would take n_heads / {parts}, but n_heads={n_heads}: give attention.n_kv_heads"
                )
            wanted = self.n_kv_heads or n_heads // parts
            where = f"attention=gqa has {wanted}"
            if n_heads % wanted:
                raise ValueError(f"attention.n_kv_heads={wanted} does not divide n_heads={n_heads}")
        else:
            return given
        if given not in (None, wanted):
            raise ValueError(
                f"model.n_kv_heads={given}, but {where} key/value heads; leave model.n_kv_heads null, or use attention=full"
            )
        return wanted


class PositionConfig(Section):
    """How a model knows the order of its tokens."""

    kind: PositionKind = Field(
        description="none: the causal mask alone; sinusoidal, learned: a vector a position, added to the input; rope: "
        "rotated queries and keys; alibi, relative_bias: a fixed, or learnt, number a head and distance, added to scores"
    )
    theta: _Theta = Field(10000.0, gt=1, description="rope, sinusoidal: base of the wavelengths")
    scaling: Literal["linear", "ntk", "yarn"] | None = Field(
        None, description="rope: how to reach beyond the length of training; null: not at all"
    )
    scaling_factor: _ScalingFactor | None = Field(
        None, gt=1, description="rope: longer by this factor"
    )
    original_seq_len: int | None = Field(
        None,
        gt=1,
        description="rope, yarn: length before scaling; null: train.seq_len / scaling_factor",
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
        if self.original_seq_len is not None and self.scaling != "yarn":
            raise ValueError(
                "position.original_seq_len is set, but only position.scaling=yarn reads it"
            )
        if self.n_buckets is not None and self.max_distance is not None:
            if self.n_buckets % 4:
                raise ValueError(
                    f"position.n_buckets={self.n_buckets} must be a multiple of 4: half a side, and half of that near"
                )
            if self.max_distance <= self.n_buckets // 2:
                raise ValueError(
                    f"position.max_distance={self.max_distance} must be above position.n_buckets / 2 = {self.n_buckets // 2}, "
                    "the distances that have a bucket of their own"
                )
        return self


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
            "position=relative_bias adds any number to each score before the softmax, and attention=linear, which sums over the "
            "past once, has room for one that grows with distance alone; use position=alibi, rope, sinusoidal, learned or none"
        )
    if attention.kind == "relative" and position.kind == "rope":
        raise ValueError(
            "position=rope turns queries by their absolute position, and attention=relative multiplies them with vectors of "
            "distances, which then would depend on it; use position=none, or attention=full"
        )
    if position.kind == "rope" and d_head % 2:
        raise ValueError(
            f"position=rope rotates pairs, but the heads are {d_head} wide; make d_head even"
        )
    if position.kind == "sinusoidal" and d_model % 2:
        raise ValueError(
            f"position=sinusoidal has pairs of sine and cosine, but d_model={d_model} is odd"
        )
