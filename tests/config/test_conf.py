"""Every option composes or is refused by name; what is in the run's identity and what is not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel

from scaling.composition.compose import compose
from scaling.config.data import HOW_DATA_COMES
from scaling.config.run_config import ComponentConfig, RunConfig, conf_dir
from scaling.errors import ConfigError
from scaling.planner.budget import token_budget

GOLDEN = Path(__file__).parents[1] / "golden" / "default_config.txt"
OPTIONS = [
    f"{path.parent.relative_to(conf_dir())}={path.stem}"
    for path in sorted(conf_dir().rglob("[!_]*.yaml"))
    if path.parent != conf_dir()
]
REFUSED = {
    "data=shards": "data.path",
    "data=text_files": "data.path",
    "data=text_pairs": "data.path",
    "data=documents": "data.path",
    "tokenizer=hf": "tokenizer.vocab_size",
    "model=transformer_base": "data=text_pairs",
    "model=transformer_big": "data=text_pairs",
    "objective=masked_lm": "model.family=gpt",
    "objective=prefix_lm": "model.family=gpt",
    "objective=seq2seq": "model.family=gpt",
    "objective=span_corruption": "model.family=gpt",
}
"""Options that do not go with the default of every other group, and what their error must name."""

SEMANTIC_SECTIONS = {
    "model",
    "attention",
    "position",
    "objective",
    "data",
    "tokenizer",
    "optim",
    "schedule",
    "precision",
}
SEMANTIC_TRAIN = {
    "train.n_tokens",
    "train.global_batch_size",
    "train.seq_len",
    "train.seed",
    "train.parent",
    "init_from.content_hash",
}
EXECUTION_ANYWHERE = {"model.name", *(f"data.{key}" for key in HOW_DATA_COMES)}
BY_PRECISION = {"cluster.device.kind"}
"""precision=auto is fp32 on CPUs and bf16 on GPUs: through it, and only then, the kind of device is
in the mathematics."""


@pytest.mark.parametrize("option", [option for option in OPTIONS if option not in REFUSED])
def test_every_option_composes(option: str) -> None:
    config = compose([f"+{option}" if option.startswith("experiment=") else option])
    assert RunConfig.model_validate(config.model_dump()) == config  # composing leaves nothing open


@pytest.mark.parametrize(("option", "named"), REFUSED.items())
def test_an_option_that_needs_another_says_which(option: str, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose([option])
    assert named in caught.value.what


def test_refused_options_exist() -> None:
    assert REFUSED.keys() <= set(OPTIONS)


def leaves(config: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, value, annotation) of every key."""
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value, field.annotation


def test_the_default_configuration_is_that_of_the_golden_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SCALING_CACHE", raising=False)
    config = compose()
    lines = [f"{key} = {value!r}" for key, value, _ in leaves(config)]
    text = "\n".join([*lines, f"semantic_hash = {config.semantic_hash}", ""])
    if os.environ.get("SCALING_REWRITE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text(), (
        "The default configuration, or its identity, has moved. "
        "Runs that have begun under the old hash will not be found "
        "again. If that was meant, rewrite the file with SCALING_REWRITE_GOLDEN=1 and say why; "
        "if not, it is a mistake."
    )


def another(key: str, value: Any, annotation: Any) -> Any:
    """A value of the same type that is not `value`; the models do not check it."""
    choices = [
        choice
        for part in (annotation, *get_args(annotation))
        if get_origin(part) is Literal
        for choice in get_args(part)
    ]
    if key == "data.components":
        return (ComponentConfig(name="part", weight=1.0, kind="python_stdlib"),)
    if key == "attention.pattern":
        return ("local",)
    if key == "precision.kind":
        return "bf16"  # fp32 is what auto stands for here
    if len(choices) > 1:
        return next(choice for choice in choices if choice != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    if "bool" in str(annotation):
        return True
    return "x" if "str" in str(annotation) else 7


def changed(config: Any, key: str, value: Any) -> Any:
    name, _, rest = key.partition(".")
    return config.model_copy(
        update={name: changed(getattr(config, name), rest, value) if rest else value}
    )


DEFAULT = compose(["cluster.devices_per_node=2"])
KEYS = {key: (value, annotation) for key, value, annotation in leaves(DEFAULT)}


def is_semantic(key: str) -> bool:
    return key in SEMANTIC_TRAIN or (
        key.split(".")[0] in SEMANTIC_SECTIONS and key not in EXECUTION_ANYWHERE
    )


@pytest.mark.parametrize("key", [key for key in KEYS if is_semantic(key)])
def test_a_key_of_the_mathematics_changes_the_identity(key: str) -> None:
    assert changed(DEFAULT, key, another(key, *KEYS[key])).semantic_hash != DEFAULT.semantic_hash


@pytest.mark.parametrize(
    "key", [key for key in KEYS if not is_semantic(key) and key not in BY_PRECISION]
)
def test_a_key_of_the_execution_leaves_the_identity(key: str) -> None:
    assert changed(DEFAULT, key, another(key, *KEYS[key])).semantic_hash == DEFAULT.semantic_hash


def test_the_kind_of_device_counts_through_precision_only() -> None:
    gpu = changed(DEFAULT, "cluster.device.kind", "gpu")
    assert gpu.semantic_hash != DEFAULT.semantic_hash
    assert gpu.semantic_hash == changed(DEFAULT, "precision.kind", "bf16").semantic_hash
    fp32 = changed(DEFAULT, "precision.kind", "fp32")
    assert (
        fp32.semantic_hash
        == DEFAULT.semantic_hash
        == changed(fp32, "cluster.device.kind", "gpu").semantic_hash
    )


def test_spelling_out_what_null_stands_for_leaves_the_identity() -> None:
    model = DEFAULT.model
    spelt = {
        "n_kv_heads": model.kv_heads,
        "d_head": model.head_width,
        "d_ff": model.ff_width,
        "vocab_size": DEFAULT.vocab_size,
    }
    assert all(getattr(model, key) is None for key in spelt)
    overrides = [f"model.{key}={value}" for key, value in spelt.items()]
    assert compose(overrides).semantic_hash == compose().semantic_hash
    assert compose([f"model.d_ff={model.ff_width + 64}"]).semantic_hash != compose().semantic_hash


def test_a_budget_that_is_null_is_resolved_before_the_identity() -> None:
    config = compose(["train.n_tokens=null"])
    assert config.train.n_tokens == token_budget(config)
    assert (
        compose([f"train.n_tokens={config.train.n_tokens}"]).semantic_hash == config.semantic_hash
    )


def test_a_saved_configuration_reads_back_as_the_same(tmp_path: Path) -> None:
    again = RunConfig.model_validate(DEFAULT.model_dump(mode="json"))
    assert again == DEFAULT
    assert again.semantic_hash == DEFAULT.semantic_hash
