"""Gemma 2 and 3: norms before and after each sublayer that multiply by 1 + weight, scaled
embeddings, gated GELU, and layers in a sliding window between others; capped scores and logits in
the second, norms of queries and keys and two bases of rotary positions in the third."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from scaling.arrangements.base import Arrangement, Place, Settings, Theirs
from scaling.arrangements.decoder import (
    SANDWICH,
    gate_for,
    obstacles_of,
    places_of,
    repeated,
    settings,
    shape_for,
    shape_of,
)
from scaling.arrangements.layer_types import attention_from, layer_types_for, with_pattern
from scaling.arrangements.rope import SCALINGS, position_of, rope_for, rope_from, scaling_for
from scaling.config.run_config import RunConfig

_ACTIVATIONS = {"gelu_pytorch_tanh": "geglu", "gelu_new": "geglu"}
_LOCAL, _FULL = "sliding_attention", "full_attention"


def _model(theirs: Theirs) -> dict[str, Any]:
    model = shape_of(theirs, eps=1e-6, d_head=256, tied=True) | {
        "norm": "rmsnorm_one",
        "norm_position": "sandwich",
        "scale_embedding": True,
    }
    activation = theirs.take("hidden_activation", "hidden_act", default="gelu_pytorch_tanh")
    if activation not in _ACTIVATIONS:
        raise theirs.refused("hidden_activation", activation, tuple(_ACTIVATIONS))
    model["activation"] = _ACTIVATIONS[activation]
    if theirs.expect("attention_bias", False, True):
        model["attention_bias"] = "all"
    theirs.expect("use_bidirectional_attention", False)
    return model


def _caps(
    theirs: Theirs, logits: float | None, scores: float | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Caps, of the model and of attention; a key that is there and null is no cap."""
    values = theirs.values
    logit_cap = values.get("final_logit_softcapping", logits)
    score_cap = values.get("attn_logit_softcapping", scores)
    theirs.used |= {"final_logit_softcapping", "attn_logit_softcapping"}
    width = theirs.take("query_pre_attn_scalar", default=256)
    model = {} if logit_cap is None else {"logit_cap": logit_cap}
    attention = {"score_width": width} | ({} if score_cap is None else {"score_cap": score_cap})
    return model, attention


def gemma2_from(values: Mapping[str, Any]) -> Settings:
    theirs = Theirs(values, "gemma2")
    model = _model(theirs)
    of_model, of_attention = _caps(theirs, 30.0, 50.0)
    n = model["n_layers"]
    usual = [_FULL if layer % 2 else _LOCAL for layer in range(n)]
    theirs.changes_nothing("cache_implementation", "sliding_window_size")
    window = theirs.take("sliding_window", default=4096)
    attention = attention_from(theirs, n, usual, window)
    seq_len = theirs.take("max_position_embeddings", default=8192)
    position = rope_from(theirs, seq_len=seq_len)
    theirs.finish()
    return settings(model | of_model, attention | of_attention, position, seq_len)


def _config_for(config: RunConfig) -> dict[str, Any]:
    model, attention = config.model, config.attention
    width = attention.score_width or float(model.head_width)
    return {
        **shape_for(config),
        "hidden_activation": gate_for(config),
        "attention_bias": model.qkv_biased,
        "query_pre_attn_scalar": int(width) if width == int(width) else width,
        "final_logit_softcapping": model.logit_cap,
        "attn_logit_softcapping": attention.score_cap,
        "sliding_window": attention.window,
        "layer_types": layer_types_for(config),
    }


def gemma2_for(config: RunConfig) -> dict[str, Any]:
    return {
        "architectures": ["Gemma2ForCausalLM"],
        **_config_for(config),
        **rope_for(config),
    }


def _obstacles(config: RunConfig, **more: tuple[object, ...]) -> list[str]:
    wanted: dict[str, tuple[object, ...]] = {
        "norm": ("rmsnorm_one",),
        "norm_position": ("sandwich",),
        "scale_embedding": (True,),
        "activation": ("geglu",),
        "attention_bias": ("all", "none"),
        "logit_cap": (config.model.logit_cap,),
        "score_cap": (config.attention.score_cap,),
        "score_width": (config.attention.score_width,),
        "pattern": with_pattern(config),
        "rope_scaling": SCALINGS,
    }
    return obstacles_of(config, **(wanted | more))


def places(config: RunConfig) -> Iterator[Place]:
    return places_of(config, SANDWICH)


def gemma3_from(values: Mapping[str, Any]) -> Settings:
    theirs = Theirs(values, "gemma3_text")
    model = _model(theirs) | {"qk_norm": "head"}
    of_model, of_attention = _caps(theirs, None, None)
    n = model["n_layers"]
    every = theirs.take("sliding_window_pattern", "_sliding_window_pattern", default=6)
    usual = [_LOCAL if (layer + 1) % every else _FULL for layer in range(n)]
    theirs.changes_nothing("cache_implementation")
    attention = attention_from(theirs, n, usual, theirs.take("sliding_window", default=4096))
    seq_len = theirs.take("max_position_embeddings", default=131072)
    position = two_bases(theirs, seq_len, "rope_theta", 1e6, "rope_local_base_freq")
    if "pattern" not in attention:
        position.pop("local_theta")
    theirs.finish()
    return settings(model | of_model, attention | of_attention, position, seq_len)


def two_bases(
    theirs: Theirs, seq_len: int, full_key: str, full_theta: float, local_key: str
) -> dict[str, Any]:
    """Our position group for rotary positions whose base is another in local layers. Earlier
    versions of the library have keys of their own and scale the full layers alone."""
    rope = theirs.take("rope_parameters", "rope_scaling", default={})
    local_theta = theirs.take(local_key, default=10000.0)
    full_theta = theirs.take(full_key, default=full_theta)
    nested = _FULL in rope or _LOCAL in rope
    full, local = (rope.get(_FULL) or {}, rope.get(_LOCAL) or {}) if nested else (rope, {})
    position = position_of(theirs, full, seq_len=seq_len, theta=full_theta)
    in_local = position_of(theirs, local, seq_len=seq_len, theta=local_theta)
    if "scaling" in in_local:
        raise theirs.refused("rope_type of sliding_attention", in_local["scaling"], ("default",))
    return position | {"local_theta": in_local["theta"]}


def gemma3_for(config: RunConfig) -> dict[str, Any]:
    local_theta = config.position.local_theta or config.position.theta
    scaling = scaling_for(config) or {"rope_type": "default"}
    return {
        "architectures": ["Gemma3ForCausalLM"],
        **_config_for(config),
        "rope_parameters": {
            _FULL: {"rope_theta": config.position.theta, **scaling},
            _LOCAL: {"rope_theta": local_theta, "rope_type": "default"},
        },
    }


def gemma2_obstacles(config: RunConfig) -> list[str]:
    return _obstacles(config)


def gemma3_obstacles(config: RunConfig) -> list[str]:
    scaled = config.position.scaling and config.position.local_theta is None
    local = "local" in (config.attention.pattern or ())
    both = ["local_theta=None"] if scaled and local else []
    local_theta = (config.position.local_theta,)
    return _obstacles(config, qk_norm=("head",), local_theta=local_theta) + both


GEMMA2 = Arrangement(
    "gemma2",
    ("Gemma2ForCausalLM", "Gemma2Model"),
    gemma2_from,
    gemma2_for,
    gemma2_obstacles,
    places,
    repeated,
    prefix="model.",
)
GEMMA3 = Arrangement(
    "gemma3_text",
    ("Gemma3ForCausalLM", "Gemma3TextModel"),
    gemma3_from,
    gemma3_for,
    gemma3_obstacles,
    places,
    repeated,
    prefix="model.",
)
