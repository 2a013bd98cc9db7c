"""Turn a recommended size into a run: the nearest shape, the words that compose it, and its
plan."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaling.composition.compose import compose, words_for
from scaling.config.recorded import RECORDED
from scaling.config.run_config import RunConfig, options_of
from scaling.errors import ConfigError
from scaling.planner.budget import token_budget
from scaling.planner.cost.counts import count
from scaling.planner.machines.detect import n_devices, resolve_cluster
from scaling.planner.run_plan import RunPlan, make_plan
from scaling.planner.shape import nearest_shape, size_of
from scaling.units import counted

NAME = "from_law"
GPU_SEQ_LEN = 2048
"""Least tokens per sequence of a batch made by rule: Brown et al. 2020, section 2.1."""
_MOST_PARAMS, _MOST_TOKENS = 1e15, 1e17
"""No model is larger (assumption), and no budget of tokens (train.n_tokens)."""
_BATCH, _LR = (0.2920, 0.3271), (0.3118, -0.1250)
"""Best tokens per step and learning rate, as coefficient and exponent of C in FLOPs: DeepSeek-AI
2024 (arXiv:2401.02954), eq. 1."""
_LARGE_VOCABULARY = 50_257
"""Entries of GPT-2's vocabulary (Radford et al. 2019)."""
_RULE = "DeepSeek-AI 2024, eq. 1"
_FAR = 4
"""A study's batch is kept on GPUs while the rule's is at most this many times larger: about the
width of the band of near-optimal batches in DeepSeek-AI 2024, figure 3."""


@dataclass(frozen=True)
class Recommendation:
    """A run to train. overrides: the words for `python -m scaling.run`; n_params: counted as the
    law counts; batch_rule: source of the batch, where it is not the study's."""

    overrides: tuple[str, ...]
    config: RunConfig
    n_params: int
    plan: RunPlan
    batch_rule: str = ""


def recommend(
    n_params: float,
    n_tokens: float,
    *,
    with_embeddings: bool,
    base: RunConfig | None = None,
    overrides: tuple[str, ...] = (),
) -> Recommendation:
    """The model nearest to `n_params`, trained on `n_tokens`, and its plan.

    base: a run of the study. The new run keeps its data, tokenizer, optimiser and everything else
    except the size, because a law holds for those. On GPUs a batch that is far too small for the
    budget is replaced by the rule's. None: the named GPT nearest in size. Depth and width change;
    the aspect ratio stays as close as the size allows. overrides: more words, such as
    cluster=8xA100. Raises ConfigError, or PlanError where the cluster cannot hold the model.
    """
    _refuse_beyond(n_params, n_tokens)
    given, rule = _with_batch(
        base or _nearest_named(n_params, with_embeddings, overrides),
        6 * n_params * n_tokens,
        resolve_cluster(compose(overrides)),
        studied=base is not None,
    )
    model = given.model.model_copy(
        update=nearest_shape(given, n_params, with_embeddings=with_embeddings) | _named(base)
    )
    train = given.train.model_copy(update={"n_tokens": round(n_tokens)})
    run = compose(overrides).run.model_copy(update={"name": NAME})
    wanted = given.model_copy(update={"model": model, "train": train, "run": run})
    train = train.model_copy(update={"n_tokens": token_budget(wanted)})
    words = (
        *words_for(wanted.model_copy(update={"train": train}), f"model={_option(given)}"),
        *overrides,
    )
    config = resolve_cluster(compose(words))
    plan = make_plan(config)
    return Recommendation(
        words,
        config,
        size_of(plan.counts, with_embeddings=with_embeddings),
        plan,
        rule,
    )


def _refuse_beyond(n_params: float, n_tokens: float) -> None:
    """Raises ConfigError for a run that no configuration describes, as a law of undetermined
    exponents recommends it."""
    for value, most, what in (
        (n_params, _MOST_PARAMS, "parameters"),
        (n_tokens, _MOST_TOKENS, "tokens"),
    ):
        if not 1 <= value <= most:
            raise ConfigError(
                f"the law recommends {value:.3g} {what}, and a run has 1 to {most:g}",
                "fit",
                "Ask for a budget nearer to the fitted runs, or add runs to the fit.",
            )


def _with_batch(
    config: RunConfig, flops: float, target: RunConfig, *, studied: bool
) -> tuple[RunConfig, str]:
    """Set sequence length, batch and learning rate that suit the budget on target's GPUs, with a
    batch for all devices, and name the rule. A CPU keeps config's own, and so does a study whose
    batch is near the rule's."""
    train, devices = config.train, n_devices(target)
    tokens = _BATCH[0] * flops ** _BATCH[1]
    given = train.global_batch_size * train.seq_len
    near = tokens <= _FAR * given and train.global_batch_size >= devices
    if target.cluster.device.kind != "gpu" or (studied and near):
        return config, ""
    seq_len = max(train.seq_len, GPU_SEQ_LEN) if studied else GPU_SEQ_LEN
    batch = max(1, round(tokens / seq_len / devices)) * devices
    optim = config.optim.model_copy(update={"lr": float(f"{_LR[0] * flops ** _LR[1]:.3g}")})
    changed = train.model_copy(update={"seq_len": seq_len, "global_batch_size": batch})
    why = (
        f"; the study's {counted(train.global_batch_size, 'sequence')} of {train.seq_len} a step "
        "are too few tokens"
        if studied
        else ""
    )
    return config.model_copy(update={"train": changed, "optim": optim}), f" ({_RULE}{why})"


def base_of(found: Mapping[str, Any]) -> RunConfig | None:
    """The configuration of a study's largest run, in a stored analysis. Raises ConfigError for one
    of another version."""
    if found.get("base") is None:
        return None
    try:
        return RunConfig.model_validate(found["base"], context=RECORDED)
    except ValueError as error:
        raise ConfigError(
            f"the study's configuration is not of this version: {error}",
            "fit",
            "Fit the study again.",
        ) from error


def write_recommendation(
    recommendation: Recommendation, prediction: dict[str, Any], path: Path
) -> Path:
    """Write the configuration as YAML with its predictions; returns the file's path. Raises
    RunDirError."""
    import yaml

    from scaling.runs.files import write_atomic

    tree = {
        "words": list(recommendation.overrides),
        "prediction": prediction,
        "config": recommendation.config.model_dump(mode="json"),
    }
    write_atomic(path, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True).encode())
    return path


def _named(base: RunConfig | None) -> dict[str, str]:
    return {} if base is None else {"name": NAME}


def _option(config: RunConfig) -> str:
    """A model of conf/model of the same family to start from: the same model, where it has a
    file."""
    named = [path.stem for path in _files(config.model.family)]
    return config.model.name if config.model.name in named else named[0]


def _files(family: str) -> list[Path]:
    found = sorted(
        path for name, path in options_of("model").items() if name.startswith(f"{family}_")
    )
    if not found:
        raise ConfigError(f"there are no models {family}_*", "conf/model")
    return found


def _nearest_named(n_params: float, with_embeddings: bool, overrides: tuple[str, ...]) -> RunConfig:
    """The gpt_* of conf/model nearest in size, counted exactly among those that are roughly so:
    to compose a model takes most of a second."""

    def far(config: RunConfig) -> float:
        return abs(math.log(size_of(count(config), with_embeddings=with_embeddings) / n_params))

    near = _roughly_near(n_params, _files("gpt"))
    return min((compose((f"model={path.stem}", *overrides)) for path in near), key=far)


def _roughly_near(n_params: float, files: list[Path]) -> list[Path]:
    """The files whose models are nearest in blocks alone, and nearest with a large vocabulary; all
    of them where one leaves its shape to another file."""
    import yaml

    shapes = {path: yaml.safe_load(path.read_bytes()).get("model", {}) for path in files}
    if not all({"n_layers", "d_model"} <= shape.keys() for shape in shapes.values()):
        return files
    near: dict[Path, None] = {}
    for vocabulary in (0, _LARGE_VOCABULARY):
        sizes = {
            path: 12 * shape["n_layers"] * shape["d_model"] ** 2 + vocabulary * shape["d_model"]
            for path, shape in shapes.items()
        }
        ordered = sorted(files, key=lambda path: abs(math.log(sizes[path] / n_params)))
        near |= dict.fromkeys(ordered[:2])
    return list(near)
