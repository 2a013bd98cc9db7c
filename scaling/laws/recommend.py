"""From the size that a law recommends to a run: the nearest GPT shape, as overrides of `python -m scaling.run`, and its plan."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scaling.compose import compose
from scaling.config import RunConfig, conf_dir
from scaling.errors import ConfigError
from scaling.plan.counts import ModelCounts, count
from scaling.plan.layout import RunPlan, make_plan
from scaling.plan.machine import resolve_cluster

_MAX_LAYERS = 160
_ASPECT_WEIGHT = 0.02
"""Weight of ln(aspect ratio / the base model's) against ln(N / wanted) when they pull apart: the loss is flat in the aspect
ratio over a factor of several (Kaplan et al. 2020, arXiv:2001.08361, figure 5), so the size comes first."""


@dataclass(frozen=True)
class Recommendation:
    """overrides: what to give `python -m scaling.run`; n_params counts as the law does."""

    overrides: tuple[str, ...]
    config: RunConfig
    n_params: int
    plan: RunPlan


def recommend(n_params: float, n_tokens: float, *, with_embeddings: bool, overrides: tuple[str, ...] = ()) -> Recommendation:
    """The GPT nearest to `n_params`, trained on `n_tokens`, and its plan.

    The named model nearest in size gives width of heads, vocabulary and everything else; its depth and width are changed,
    its aspect ratio is kept as far as the size allows. overrides: further words for the configuration, such as
    cluster=8xA100. Raises ConfigError, or PlanError where the cluster cannot hold the model.
    """
    base = min(_named_models(overrides), key=lambda config: abs(math.log(_size(count(config), with_embeddings) / n_params)))
    model = base.model
    aspect = model.d_model / model.n_layers

    def unlike(shape: tuple[int, int]) -> float:
        layers, heads = shape
        size = _size(count(_reshaped(base, layers, heads)), with_embeddings)
        return abs(math.log(size / n_params)) + _ASPECT_WEIGHT * abs(math.log(heads * model.head_width / layers / aspect))

    heads_near = _heads_for(base, n_params, aspect)
    layers, heads = min(((layers, heads) for layers in _layers_near(base, n_params) for heads in heads_near), key=unlike)
    words = (
        f"model={model.name}", f"model.n_layers={layers}", f"model.n_heads={heads}",
        f"model.d_model={heads * model.head_width}", f"train.n_tokens={round(n_tokens)}", "run.name=from_law", *overrides,
    )  # fmt: skip
    config = resolve_cluster(compose(words))
    plan = make_plan(config)
    return Recommendation(words, config, _size(plan.counts, with_embeddings), plan)


def _named_models(overrides: tuple[str, ...]) -> list[RunConfig]:
    names = sorted(path.stem for path in (conf_dir() / "model").glob("gpt_*.yaml"))
    if not names:
        raise ConfigError("there are no models gpt_*", "conf/model")
    return [compose((f"model={name}", *overrides)) for name in names]


def _size(counts: ModelCounts, with_embeddings: bool) -> int:
    return counts.n_params if with_embeddings else counts.n_params_non_embedding


def _reshaped(base: RunConfig, layers: int, heads: int) -> RunConfig:
    shape = {"n_layers": layers, "n_heads": heads, "d_model": heads * base.model.head_width}
    return base.model_copy(update={"model": base.model.model_copy(update=shape)})


def _heads_for(base: RunConfig, n_params: float, aspect: float) -> range:
    """Numbers of heads about the one at which a model of this aspect ratio has the size: N = 12 layers width^2."""
    width = (n_params * aspect / 12) ** (1 / 3)  # Kaplan et al. 2020, table 1
    middle = max(1, round(width / base.model.head_width))
    group = base.model.kv_heads if base.model.kv_heads != base.model.n_heads else 1  # keys and values are shared in these steps
    lowest, highest = max(1, middle * 2 // (3 * group)), middle * 3 // (2 * group) + 2
    return range(lowest * group, highest * group, group)


def _layers_near(base: RunConfig, n_params: float) -> range:
    ratio = (n_params / max(1, count(base).n_params)) ** (1 / 3)
    middle = max(1, round(base.model.n_layers * ratio))
    return range(max(1, middle // 2), min(_MAX_LAYERS, 2 * middle + 1) + 1)
