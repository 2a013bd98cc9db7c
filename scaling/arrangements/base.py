"""What an arrangement is: one architecture of another library, set beside our own models.

An arrangement translates settings and names. It moves numbers and changes none of them: what an
architecture computes differently is a choice of our own configuration. Needs no torch, so that a
plan can follow from another library's config.json.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scaling.config.run_config import RunConfig
from scaling.errors import ConfigError

Settings = dict[str, dict[str, Any]]
"""Groups of our configuration by name, each with the keys that an arrangement settles:
{"model": {"n_layers": 2, ...}, "attention": {"kind": "full"}, "position": ..., "objective": ...}.
"train": {"seq_len": n} is the longest sequence that the source reads."""


@dataclass(frozen=True)
class Place:
    """Where one parameter of ours lies in one weight of theirs.

    Several places may share one of theirs: that is how fused matrices are described.
    """

    ours: str
    """Name of our parameter, as in named_parameters."""
    theirs: str
    """Name of their weight."""
    transposed: bool = False
    """Theirs is (in, out), as GPT-2's Conv1D holds matrices. A vector is not touched."""
    rows: Sequence[int] | None = None
    """The rows of theirs, after transposing, that are ours, in our order; None: all of them.
    A range costs nothing and is read as a slice. Rows that no place names are written as zeros."""
    index: int | None = None
    """The entry along a leading dim where theirs is a stack of equal matrices (experts)."""


@dataclass(frozen=True)
class Arrangement:
    """One architecture: its settings and names, both ways."""

    name: str
    """The model_type of their config.json."""
    architectures: tuple[str, ...]
    """Classes of theirs that may be named in config.json, the one that export writes first."""
    shape_from: Callable[[Mapping[str, Any]], Settings]
    """Our settings for a config.json of theirs. Raises ConfigError for a setting that we lack."""
    config_for: Callable[[RunConfig], dict[str, Any]]
    """What config.json says of our model, without what `common` of the export adds. The key
    "architectures" names the class of theirs that reads it."""
    obstacles: Callable[[RunConfig], list[str]]
    """Settings of ours that the architecture lacks, as KEY=VALUE; empty: it has all of them."""
    places: Callable[[RunConfig], Iterator[Place]]
    """The place of every parameter of our model."""
    repeated: Callable[[RunConfig], set[str]] = field(default=lambda config: set())
    """Names under which a state of theirs repeats a tied weight or keeps what is computed."""
    prefix: str = ""
    """What stands before names of the body, and is missing where the body alone was saved."""

    @property
    def their_class(self) -> str:
        return self.architectures[0]


_CHANGES_NOTHING = (
    "_name_or_path",
    "architectures",
    "bos_token_id",
    "chunk_size_feed_forward",
    "classifier_dropout",
    "decoder_start_token_id",
    "dtype",
    "eos_token_id",
    "gradient_checkpointing",
    "id2label",
    "initializer_factor",
    "initializer_range",
    "is_encoder_decoder",
    "label2id",
    "model_type",
    "output_past",
    "pad_token_id",
    "pretraining_tp",
    "sep_token_id",
    "task_specific_params",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "use_cache",
    "vocab_size",
)
"""Keys that say nothing of what a model computes; vocab_size is read for every architecture."""


@dataclass
class Theirs:
    """Settings of a config.json, each of which must be used or known to change nothing."""

    values: Mapping[str, Any]
    name: str
    used: set[str] = field(default_factory=lambda: set(_CHANGES_NOTHING))

    def take(self, key: str, *others: str, default: Any = ...) -> Any:
        """The value of the first of these keys that is there. Raises ConfigError without one."""
        self.used |= {key, *others}
        for candidate in (key, *others):
            if self.values.get(candidate) is not None:
                return self.values[candidate]
        if default is ...:
            raise ConfigError(
                f"the config.json of a {self.name} has no {key}",
                where="config.json",
                fix="Restore it from where the weights came from.",
            )
        return default

    def expect(self, key: str, *allowed: Any, default: Any = ...) -> Any:
        """The value of `key`. Raises ConfigError where it is none of `allowed`, the first of which
        is the default."""
        value = self.take(key, default=allowed[0] if default is ... else default)
        if value not in allowed:
            raise self.refused(key, value, allowed)
        return value

    def choose(self, key: str, names: Mapping[Any, Any], *, default: Any = ...) -> Any:
        """Our word for their word at `key`. Raises ConfigError for one that we lack."""
        value = self.take(key, default=default)
        if value not in names:
            raise self.refused(key, value, tuple(names))
        return names[value]

    def changes_nothing(self, *keys: str) -> None:
        """Name keys that no computation of ours or theirs depends on."""
        self.used |= {*keys}

    def finish(self) -> None:
        """Raise ConfigError for settings that nothing has read, unless they are null or false."""
        left = {
            key: value
            for key, value in self.values.items()
            if key not in self.used and value is not None and value is not False
        }
        if left:
            shown = ", ".join(f"{key}={value!r}" for key, value in sorted(left.items()))
            raise ConfigError(
                f"no model of ours has these settings of a {self.name}: {shown}",
                where="config.json",
                fix="Remove a setting from config.json only if it changes nothing in the model.",
            )

    def refused(self, key: str, value: Any, allowed: Sequence[Any]) -> ConfigError:
        return ConfigError(
            f"a {self.name} with {key}={value!r} is not read",
            where="config.json",
            fix=f"What is read: {key}={' or '.join(repr(one) for one in allowed)}.",
        )


def unlike(config: RunConfig, wanted: Mapping[str, Sequence[object]]) -> list[str]:
    """Settings of ours that are none of the `wanted` ones, as KEY=VALUE.

    Keys are those of the model group, `attention`, `position` and `rope_scaling`, and choices of
    the groups attention, position and objective; what few arrangements have is refused unless it
    is named.
    """
    model, attention, position = config.model, config.attention, config.position
    biases = {(True, True): "all", (True, False): "qkv", (False, False): "none"}
    found = model.model_dump() | {
        "attention": attention.kind,
        "position": position.kind,
        "rope_scaling": position.scaling,
        "d_embedding": model.embedding_width,
        "attention_bias": biases[model.qkv_biased, model.output_biased],
        "embedding_norm": model.input_normed,
        "scale_embedding": config.scales_embedding,
        "n_segments": model.segments,
        "expert_weights": "sum_to_one" if model.sum_to_one else "softmax",
        "sentence_order": config.objective.sentence_order,
        "theta": position.theta,
    }
    found |= {key: getattr(attention, key) for key in ("pattern", "score_cap", "score_width")}
    few = ("rotary_fraction", "local_theta", "first_row", "halves")
    found |= {key: getattr(position, key) or None for key in few}
    common: dict[str, Sequence[object]] = {
        "attention": ("full", "gqa", "mqa"),
        "rope_scaling": (None,),
        "share_layers": (False,),
        "n_experts": (1,),
        "d_embedding": (model.d_model,),
        "parametrization": ("standard",),
        "factorised": ("tokens",),
        "first_norm": (True,),
        "embedding_norm": (model.traits.masked_head,),
        "scale_embedding": (False,),
        "n_segments": (2 if model.traits.masked_head else 0,),
        "residual": ("serial",),
        "qk_norm": ("none",),
        "attention_bias": ("all" if model.bias else "none",),
        "head_bias": (False,),
        "logit_cap": (None,),
        **dict.fromkeys(("pattern", "score_cap", "score_width", *few), (None,)),
    }
    return [
        f"{key}={found[key]}"
        for key, good in (common | dict(wanted)).items()
        if found[key] not in good
    ]
