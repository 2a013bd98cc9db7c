"""Keys that are typed and that the chosen kind of their group does not read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scaling.composition.known import meaning, where_set
from scaling.config.attention import POSITION_KINDS
from scaling.config.model import OBJECTIVES
from scaling.config.run_config import RunConfig
from scaling.config.section import unread
from scaling.errors import ConfigError

_READERS: dict[str, dict[str, tuple[str, ...]]] = {
    "schedule": {"decay_tokens": ("wsd",), "min_lr_ratio": ("cosine", "wsd")},
    "objective": {
        "mask_fraction": ("masked_lm", "span_corruption"),
        "whole_words": ("masked_lm",),
        "sentence_order": ("masked_lm",),
        "mean_span": ("span_corruption",),
    },
    "position": {"theta": ("rope", "sinusoidal")},
    "logger": dict.fromkeys(("project", "entity", "group"), ("wandb",)),
    "cluster": {"address": ("existing",)},
}
"""Group -> key -> the kinds that read it. `data`, `attention`, `study` and some of `position` check
their own keys, whoever set them."""
_OWN_KINDS = {"objective": OBJECTIVES, "position": POSITION_KINDS}
"""Groups to which plugins add kinds, which may read any key."""


def refuse_unread(config: RunConfig, words: Sequence[str]) -> None:
    """Raises ConfigError for a typed key without a reader. What a file of conf/ sets passes: a
    group sets all its keys, and another word may choose the kind."""
    for word in words:
        group, _, key = word.lstrip("+").partition("=")[0].partition(".")
        kinds = _READERS.get(group, {}).get(key)
        section: Any = getattr(config, group, None)
        if kinds is None or section.kind not in _OWN_KINDS.get(group, (section.kind,)):
            continue
        if message := unread(section, group, key, kinds):
            raise ConfigError(
                message, where_set(f"{group}.{key}", words), meaning(f"{group}.{key}")
            )
