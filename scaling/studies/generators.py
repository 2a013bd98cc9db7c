"""Generate the configurations of a study's trials from one configuration. Starts nothing.

isoflop   budgets x sizes; the tokens of a run follow from its budget (Hoffmann et al. 2022,
          arXiv:2203.15556, section 3.2)
ladder    sizes x tokens per parameter
lr_batch  learning rates x batches; the rates follow the batch by a rule
lr_width  learning rates x widths at one depth, to see whether the best rate moves
wsd       for each size a trunk at a constant rate, and cool-downs that branch from its checkpoints
          (Hu et al. 2024, arXiv:2404.06395, section 4)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from scaling.composition.compose import compose
from scaling.composition.explain import explain
from scaling.config.recorded import new_name
from scaling.config.run_config import RunConfig
from scaling.errors import ConfigError
from scaling.planner.budget import tokens_per_step
from scaling.planner.cost.counts import count
from scaling.planner.shape import nearest_shape
from scaling.units import format_count, parse_share

BATCH_POWER = {"none": 0.0, "linear": 1.0, "sqrt": 0.5, "sde": 0.5}
"""Power of the batch that the learning rate follows. linear: Goyal et al. 2017 (arXiv:1706.02677),
for SGD; sqrt and sde: Malladi et al. 2022 (arXiv:2205.10287), for Adam."""


@dataclass(frozen=True)
class Draft:
    """A trial before it is planned. branch: the step of another run at which it begins. Up to that
    step both runs are equal."""

    config: RunConfig
    branch: Branch | None = None


@dataclass(frozen=True)
class Branch:
    """Step `step` of the run with this semantic hash."""

    trunk: str
    step: int


def generate(config: RunConfig, words: tuple[str, ...] = ()) -> list[Draft]:
    """The trials of `config.study`; the configuration itself for study=none. words: those that
    composed it.

    Raises ConfigError for a study that lacks a key or has no trials.
    """
    kind = config.study.kind
    drafts = list(_GENERATORS[kind](config, words))
    if not drafts:
        least, most = config.study.least_tokens_per_param, config.study.most_tokens_per_param
        raise ConfigError(
            f"study={kind} has no trial with {least:g} to {most:g} tokens per parameter",
            "study.budgets and study.sizes",
            "Give other sizes or budgets, or set study.least_tokens_per_param and "
            "study.most_tokens_per_param.",
        )
    return drafts


def changed(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """Set these dotted keys in `config` and validate it again. Raises ConfigError."""
    tree = config.model_dump()
    for key, value in values.items():
        *sections, last = key.split(".")
        place: Any = tree
        for section in sections:
            place = place.get(section) if isinstance(place, dict) else None
        if not isinstance(place, dict) or last not in place:
            raise ConfigError(
                f"there is no key {key!r}",
                "in the study",
                f"{new_name(key)}--help lists every group and key.",
            )
        place[last] = value
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise explain(error, [f"{key}={value}" for key, value in values.items()]) from error


def _alone(config: RunConfig, words: tuple[str, ...]) -> Iterator[Draft]:
    yield Draft(config)


def _isoflop(config: RunConfig, words: tuple[str, ...]) -> Iterator[Draft]:
    study = config.study
    _need(config, "budgets", "sizes")
    for sized in _sizes(config, words):
        counts, step = count(sized), tokens_per_step(sized)
        for budget in study.budgets:
            n_tokens = max(1, round(budget / counts.flops_per_token / step)) * step
            if (
                study.least_tokens_per_param
                <= n_tokens / counts.n_params
                <= study.most_tokens_per_param
            ):
                yield Draft(_lasting(sized, n_tokens))


def _ladder(config: RunConfig, words: tuple[str, ...]) -> Iterator[Draft]:
    _need(config, "sizes", "tokens_per_param")
    for sized in _sizes(config, words):
        for ratio in config.study.tokens_per_param:
            yield Draft(_lasting(sized, _whole_steps(sized, ratio * count(sized).n_params)))


def _lr_batch(config: RunConfig, words: tuple[str, ...]) -> Iterator[Draft]:
    """The rule starts from the configuration's own batch and learning rate."""
    _need(config, "batches", "lr_factors")
    n_tokens = _tokens(config)
    for batch in config.study.batches:
        scale = batch / config.train.global_batch_size
        followed = _following(config, scale)
        for factor in config.study.lr_factors:
            values = followed | {
                "optim.lr": followed["optim.lr"] * factor,
                "train.global_batch_size": batch,
            }
            sized = changed(config, values)
            name = f"{_base_name(config)}-batch{batch}-lr{values['optim.lr']:.3g}"
            yield Draft(
                changed(sized, {"train.n_tokens": _whole_steps(sized, n_tokens), "run.name": name})
            )


def _lr_width(config: RunConfig, words: tuple[str, ...]) -> Iterator[Draft]:
    _need(config, "widths", "lr_factors")
    head = config.model.head_width
    for width in config.study.widths:
        if width % head:
            fix = f"Use multiples of {head}, or another model.n_heads."
            raise ConfigError(
                f"study.widths has {width}, which is not a multiple of the head width {head}",
                "study.widths",
                fix,
            )
        shape: dict[str, Any] = {"model.d_model": width, "model.n_heads": width // head}
        if config.model.d_ff is not None:
            shape["model.d_ff"] = max(1, round(config.model.d_ff * width / config.model.d_model))
        for factor in config.study.lr_factors:
            lr = config.optim.lr * factor
            yield Draft(
                changed(
                    config,
                    shape
                    | {"optim.lr": lr, "run.name": f"{_base_name(config)}-width{width}-lr{lr:.3g}"},
                )
            )


def _following(config: RunConfig, scale: float) -> dict[str, Any]:
    """The optimiser's values for a batch `scale` times as large.

    sde: lr as its root, 1 - beta in proportion, eps as the inverse root (Malladi et al. 2022,
    definition 6).
    """
    optim, rule = config.optim, config.study.batch_rule
    values: dict[str, Any] = {"optim.lr": optim.lr * scale ** BATCH_POWER[rule]}
    if rule == "sde":
        for name, beta in (("beta1", optim.beta1), ("beta2", optim.beta2)):
            if scale * (1 - beta) >= 1:
                raise ConfigError(
                    f"a batch {scale:g} times as large would need optim.{name} below 0",
                    "study.batch_rule=sde",
                    "Use batches nearer to train.global_batch_size, or study.batch_rule=sqrt.",
                )
            values[f"optim.{name}"] = 1 - scale * (1 - beta)
        values["optim.eps"] = optim.eps / math.sqrt(scale)
    return values


def _wsd(config: RunConfig, words: tuple[str, ...]) -> Iterator[Draft]:
    """All runs of a size share the warm-up of the shortest run, so that they are equal until they
    cool down."""
    _need(config, "tokens")
    for sized in _sizes(config, words):
        step = tokens_per_step(sized)
        lengths = sorted({_whole_steps(sized, tokens) for tokens in config.study.tokens})
        warmup = parse_share(sized.schedule.warmup_tokens, lengths[0])
        branches = []
        for n_tokens in lengths:
            decay = parse_share(sized.schedule.decay_tokens, n_tokens)
            values = {
                "schedule.kind": "wsd",
                "schedule.warmup_tokens": warmup,
                "schedule.decay_tokens": decay,
            }
            branches.append(
                (changed(_lasting(sized, n_tokens), values), (n_tokens - decay) // step)
            )
        # one step beyond the last branch: the last step of a run writes extra records
        last = 1 + max(at for _, at in branches)
        # a run whose cool-down starts at step 0 needs no trunk
        kept = tuple(sorted({at for _, at in branches if at > 0}))
        trunk = changed(
            sized,
            {
                "schedule.kind": "constant",
                "schedule.warmup_tokens": warmup,
                "train.n_tokens": last * step,
                "run.name": f"{_base_name(sized)}-trunk",
                "checkpoint.keep_steps": kept,
            },
        )
        yield Draft(trunk)
        yield from (
            Draft(branch, Branch(trunk.semantic_hash, at) if at > 0 else None)
            for branch, at in branches
        )


_GENERATORS: dict[str, Callable[[RunConfig, tuple[str, ...]], Iterator[Draft]]] = {
    "none": _alone,
    "isoflop": _isoflop,
    "ladder": _ladder,
    "lr_batch": _lr_batch,
    "lr_width": _lr_width,
    "wsd": _wsd,
}
"""Generators by kind. Searches have none: their trials are drawn during the search
(`search_space.py`)."""


def _need(config: RunConfig, *keys: str) -> None:
    for key in keys:
        if not getattr(config.study, key):
            meaning = type(config.study).model_fields[key].description
            raise ConfigError(
                f"study={config.study.kind} needs study.{key}",
                f"it has {meaning}",
                f"Give some: study.{key}=[...].",
            )


def _sizes(config: RunConfig, words: tuple[str, ...]) -> Iterator[RunConfig]:
    """The configuration at each of its sizes, or itself without sizes. A name is composed; a count
    is turned into a shape."""
    if not config.study.sizes:
        yield config
    for size in config.study.sizes:
        if isinstance(size, str):
            yield compose(
                (*(word for word in words if not word.startswith("model=")), f"model={size}")
            )
            continue
        sized = changed(
            config, {f"model.{key}": value for key, value in nearest_shape(config, size).items()}
        )
        yield changed(
            sized, {"model.name": f"{config.model.family}_{_compact(count(sized).n_params)}"}
        )


def _lasting(config: RunConfig, n_tokens: int) -> RunConfig:
    """`config` over `n_tokens`, which its name states."""
    name = f"{_base_name(config)}-{_compact(n_tokens)}"
    return changed(config, {"train.n_tokens": n_tokens, "run.name": name})


def _base_name(config: RunConfig) -> str:
    return config.run.name or config.model.name


def _tokens(config: RunConfig) -> int:
    assert config.train.n_tokens is not None, "validation resolves it"
    return config.train.n_tokens


def _whole_steps(config: RunConfig, n_tokens: float) -> int:
    """`n_tokens` rounded up to whole steps, at least one."""
    step = tokens_per_step(config)
    # the small term keeps a product of floats, such as 20.0 * N, from adding a step by rounding
    return max(1, math.ceil(n_tokens / step - 1e-9)) * step


def _compact(value: float) -> str:
    return format_count(value).replace(" ", "")
