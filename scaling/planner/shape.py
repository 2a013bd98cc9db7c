"""The shape of a wanted size: depth and width about those of a given model, whose proportions are
kept."""

from __future__ import annotations

import bisect
import math

from scaling.config.run_config import RunConfig
from scaling.planner.cost.counts import ModelCounts, count

_MAX_LAYERS = 160
_FEW_HEADS = 64
"""Numbers of heads up to which all are tried."""
_ASPECT_WEIGHT = 0.02
"""Weight of ln(aspect ratio / the base model's) against ln(N / wanted) when they pull apart: the
loss is flat in the aspect ratio over a factor of several (Kaplan et al. 2020, arXiv:2001.08361,
figure 5), so the size comes first."""


def nearest_shape(
    base: RunConfig, n_params: float, *, with_embeddings: bool = True
) -> dict[str, int]:
    """`n_layers`, `n_heads` and `d_model` (and `d_ff`, where base gives one) with which base's
    model is nearest to `n_params`.

    Heads keep their width; the aspect ratio d_model / n_layers is base's, as far as the size
    allows.
    """
    aspect = base.model.d_model / base.model.n_layers

    def size(layers: int, heads: int) -> int:
        counts = count(reshaped(base, _shape(base, layers, heads)))
        return size_of(counts, with_embeddings=with_embeddings)

    def unlike(shape: tuple[int, int]) -> float:
        layers, heads = shape
        ratio = heads * base.model.head_width / layers / aspect
        return abs(math.log(size(*shape) / n_params)) + _ASPECT_WEIGHT * abs(math.log(ratio))

    def heads_of(layers: int) -> range:
        if len(heads_near) <= _FEW_HEADS:
            return heads_near
        # the size grows with the heads: only those beside the wanted size can be nearest
        at = bisect.bisect_left(heads_near, n_params, key=lambda heads: size(layers, heads))
        return heads_near[max(0, at - 1) : at + 1]

    heads_near = _heads_for(base, n_params, aspect)
    layers, heads = min(
        ((layers, heads) for layers in _layers_near(base, n_params) for heads in heads_of(layers)),
        key=unlike,
    )
    return _shape(base, layers, heads)


def size_of(counts: ModelCounts, *, with_embeddings: bool) -> int:
    return counts.n_params if with_embeddings else counts.n_params_non_embedding


def reshaped(base: RunConfig, shape: dict[str, int]) -> RunConfig:
    return base.model_copy(update={"model": base.model.model_copy(update=shape)})


def _shape(base: RunConfig, layers: int, heads: int) -> dict[str, int]:
    model, width = base.model, heads * base.model.head_width
    shape = {"n_layers": layers, "n_heads": heads, "d_model": width}
    if model.d_ff is not None:
        shape["d_ff"] = max(1, round(model.d_ff * width / model.d_model))
    return shape


def _heads_for(base: RunConfig, n_params: float, aspect: float) -> range:
    """Numbers of heads about the one at which a model of this aspect ratio has the size: N = 12
    layers width^2."""
    width = (n_params * aspect / 12) ** (1 / 3)  # Kaplan et al. 2020, table 1
    middle = max(1, round(width / base.model.head_width))
    # keys and values are shared in these steps
    group = base.model.kv_heads if base.model.kv_heads != base.model.n_heads else 1
    lowest, highest = max(1, middle * 2 // (3 * group)), middle * 3 // (2 * group) + 2
    return range(lowest * group, highest * group, group)


def _layers_near(base: RunConfig, n_params: float) -> range:
    ratio = (n_params / max(1, count(base).n_params)) ** (1 / 3)
    middle = max(1, round(base.model.n_layers * ratio))
    lowest = min(_MAX_LAYERS, max(1, middle // 2))
    return range(lowest, min(_MAX_LAYERS, 2 * middle + 1) + 1)
