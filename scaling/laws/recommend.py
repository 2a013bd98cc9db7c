"""From the size that a law recommends to a run: the nearest GPT shape, as overrides of `python -m scaling.run`, and its plan."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scaling.compose import compose
from scaling.config import RunConfig, conf_dir
from scaling.errors import ConfigError
from scaling.plan.counts import count
from scaling.plan.layout import RunPlan, make_plan
from scaling.plan.machine import resolve_cluster
from scaling.plan.shape import nearest_shape, size_of


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

    def far(config: RunConfig) -> float:
        return abs(math.log(size_of(count(config), with_embeddings=with_embeddings) / n_params))

    base = min(_named_models(overrides), key=far)
    shape = nearest_shape(base, n_params, with_embeddings=with_embeddings)
    words = (
        f"model={base.model.name}", *(f"model.{key}={value}" for key, value in shape.items()),
        f"train.n_tokens={round(n_tokens)}", "run.name=from_law", *overrides,
    )  # fmt: skip
    config = resolve_cluster(compose(words))
    plan = make_plan(config)
    return Recommendation(words, config, size_of(plan.counts, with_embeddings=with_embeddings), plan)


def _named_models(overrides: tuple[str, ...]) -> list[RunConfig]:
    names = sorted(path.stem for path in (conf_dir() / "model").glob("gpt_*.yaml"))
    if not names:
        raise ConfigError("there are no models gpt_*", "conf/model")
    return [compose((f"model={name}", *overrides)) for name in names]
