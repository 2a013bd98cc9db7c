"""Rotary positions in others' config.json: their base, how much of a head turns, their scaling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scaling.arrangements.base import Theirs
from scaling.config.run_config import RunConfig

SCALINGS = (None, "linear", "llama3", "yarn")
"""Ours that others have as well."""

_KEYS: dict[str, dict[str, str]] = {
    "default": {},
    "linear": {"factor": "scaling_factor"},
    "llama3": {
        "factor": "scaling_factor",
        "original_max_position_embeddings": "original_seq_len",
        "low_freq_factor": "slow_turns",
        "high_freq_factor": "fast_turns",
    },
    "yarn": {
        "factor": "scaling_factor",
        "original_max_position_embeddings": "original_seq_len",
        "beta_slow": "slow_turns",
        "beta_fast": "fast_turns",
        "attention_factor": "score_factor",
    },
}
"""Their rope_type -> their keys -> ours."""


def rope_from(
    theirs: Theirs,
    *,
    seq_len: int,
    theta: float = 10000.0,
    fraction: float | None = None,
    theta_key: str = "rope_theta",
    fraction_key: str = "partial_rotary_factor",
) -> dict[str, Any]:
    """Our position group. Version 5 of the library writes rope_parameters; earlier ones write
    rope_scaling, beside keys of their own for base and fraction."""
    rope = theirs.take("rope_parameters", "rope_scaling", default={})
    theta = theirs.take(theta_key, default=theta)
    fraction = theirs.take(fraction_key, default=fraction)
    return position_of(theirs, rope, seq_len=seq_len, theta=theta, fraction=fraction)


def position_of(
    theirs: Theirs,
    rope: Mapping[str, Any],
    *,
    seq_len: int,
    theta: float,
    fraction: float | None = None,
) -> dict[str, Any]:
    """Our position group for one dict of theirs. Raises ConfigError for a scaling or a key of one
    that we lack."""
    left: dict[str, Any] = {key: value for key, value in rope.items() if value is not None}
    old, kind = left.pop("type", "default"), left.pop("rope_type", None)
    kind = kind or old
    if kind not in _KEYS:
        raise theirs.refused("rope_type", kind, tuple(_KEYS))
    fraction = left.pop("partial_rotary_factor", fraction)
    position: dict[str, Any] = {"kind": "rope", "theta": float(left.pop("rope_theta", theta))}
    if fraction not in (None, 1.0):
        position["rotary_fraction"] = fraction
    if left.get("truncate") is True:  # bounds are whole pairs, as ours are
        del left["truncate"]
    found = {ours: left.pop(key) for key, ours in _KEYS[kind].items() if key in left}
    if left:
        key, value = next(iter(left.items()))
        raise theirs.refused(f"{kind} scaling {key}", value, (None,))
    if kind == "default" or found.get("scaling_factor") == 1:
        return position
    if kind != "linear":
        found.setdefault("original_seq_len", seq_len)
    return position | {"scaling": kind} | found


def rope_for(config: RunConfig) -> dict[str, Any]:
    """Their keys for our positions, as every version of the library reads them."""
    return {"rope_theta": config.position.theta, "rope_scaling": scaling_for(config)}


def scaling_for(config: RunConfig) -> dict[str, Any] | None:
    position = config.position
    if position.scaling is None:
        return None
    slow, fast = position.turns
    factor = position.scaling_factor or 1.0
    values = position.model_dump() | {
        "slow_turns": slow,
        "fast_turns": fast,
        "original_seq_len": position.original_seq_len or round(config.train.seq_len / factor),
    }
    keys = {
        theirs: values[ours]
        for theirs, ours in _KEYS[position.scaling].items()
        if values[ours] is not None
    }
    return {"rope_type": position.scaling, **keys}
