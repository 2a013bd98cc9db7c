"""What Llama and the decoders after it share: settings by the same keys, layers by the same
names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from scaling.arrangements.base import Place, Settings, Theirs, unlike
from scaling.arrangements.rope import rope_for, rope_from
from scaling.config.run_config import RunConfig

GATED = {"silu": "swiglu", "gelu_pytorch_tanh": "geglu", "gelu_new": "geglu", "gelu": "geglu_exact"}
"""Their activation of the gate -> ours. Of several words for one of ours, the first is written."""

NORMS = {"attention_norm": "input_layernorm", "feed_forward_norm": "post_attention_layernorm"}
SANDWICH = {
    "attention_norm": "input_layernorm",
    "attention_post_norm": "post_attention_layernorm",
    "feed_forward_norm": "pre_feedforward_layernorm",
    "feed_forward_post_norm": "post_feedforward_layernorm",
}
QK_NORMS = {"attention.q_norm": "self_attn.q_norm", "attention.k_norm": "self_attn.k_norm"}
FEED_FORWARD = {f"feed_forward.{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")}


def shape_of(
    theirs: Theirs, *, eps: float, d_head: int | None = None, tied: bool = False
) -> dict[str, Any]:
    """Our model group, for RMSNorm in pre-norm without biases. d_head, eps, tied: of a config.json
    that says nothing of them."""
    n_heads = theirs.take("num_attention_heads")
    theirs.changes_nothing("attention_dropout")
    return {
        "family": "gpt",
        "n_layers": theirs.take("num_hidden_layers"),
        "d_model": theirs.take("hidden_size"),
        "n_heads": n_heads,
        "n_kv_heads": theirs.take("num_key_value_heads", default=n_heads),
        "d_head": theirs.take("head_dim", default=d_head),
        "d_ff": theirs.take("intermediate_size"),
        "norm_eps": theirs.take("rms_norm_eps", default=eps),
        "tie_embeddings": theirs.take("tie_word_embeddings", default=tied),
        "norm": "rmsnorm",
        "norm_position": "pre",
        "bias": False,
    }


def shape_for(config: RunConfig) -> dict[str, Any]:
    """Their keys for our model group."""
    model = config.model
    return {
        "num_hidden_layers": model.n_layers,
        "hidden_size": model.d_model,
        "num_attention_heads": model.n_heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_width,
        "intermediate_size": model.ff_width,
        "max_position_embeddings": config.train.seq_len,
        "rms_norm_eps": model.norm_eps,
    }


def gate_for(config: RunConfig) -> str:
    """Their word for the activation of our gate."""
    return next(theirs for theirs, ours in GATED.items() if ours == config.model.activation)


def settings(
    model: Mapping[str, Any], attention: Mapping[str, Any], position: Mapping[str, Any], n: int
) -> dict[str, dict[str, Any]]:
    """All groups of a decoder that has read up to n positions."""
    return {
        "model": dict(model),
        "attention": dict(attention),
        "position": dict(position),
        "objective": {"kind": "causal_lm"},
        "train": {"seq_len": n},
    }


def swiglu_from(
    theirs: Theirs,
    model: Mapping[str, Any],
    attention: Mapping[str, Any],
    *,
    longest: int,
    theta: float = 10000.0,
) -> Settings:
    """All groups of a decoder with SwiGLU and rotary positions: the last keys that are read.
    longest, theta: of a config.json that says nothing of them."""
    activation = theirs.choose("hidden_act", {"silu": "swiglu"}, default="silu")
    seq_len = theirs.take("max_position_embeddings", default=longest)
    position = rope_from(theirs, seq_len=seq_len, theta=theta)
    theirs.finish()
    return settings({**model, "activation": activation}, attention, position, seq_len)


def swiglu_for(config: RunConfig) -> dict[str, Any]:
    """Their keys for such a decoder."""
    return {**shape_for(config), **rope_for(config), "hidden_act": gate_for(config)}


def obstacles_of(config: RunConfig, **wanted: tuple[object, ...]) -> list[str]:
    """Settings of ours that are none of these, of a decoder with RMSNorm, rotary positions and
    SwiGLU where nothing else is wanted."""
    usual: dict[str, tuple[object, ...]] = {
        "family": ("gpt",),
        "norm": ("rmsnorm",),
        "norm_position": ("pre",),
        "bias": (False,),
        "position": ("rope",),
        "activation": ("swiglu",),
    }
    return unlike(config, usual | wanted)


def places_of(
    config: RunConfig,
    norms: Mapping[str, str] = NORMS,
    feed_forward: Mapping[str, str] = FEED_FORWARD,
) -> Iterator[Place]:
    """Every parameter of a decoder whose layers are named as Llama's."""
    model = config.model
    yield Place("embedding.weight", "model.embed_tokens.weight")
    yield Place("final_norm.weight", "model.norm.weight")
    if not model.tie_embeddings:
        yield Place("head.weight", "lm_head.weight")
    pairs = {f"attention.{name}": f"self_attn.{name}_proj" for name in "qkvo"}
    pairs |= {**norms, **feed_forward} | (QK_NORMS if model.qk_norm == "head" else {})
    biased = set("qkv" if model.qkv_biased else "") | set("o" if model.output_biased else "")
    biased = {f"attention.{name}" for name in biased} | (set(FEED_FORWARD) if model.bias else set())
    for layer in range(model.n_layers):
        for ours, theirs in pairs.items():
            for kind in ("weight", "bias") if ours in biased else ("weight",):
                yield Place(
                    f"blocks.{layer}.{ours}.{kind}", f"model.layers.{layer}.{theirs}.{kind}"
                )


def repeated(config: RunConfig) -> set[str]:
    buffers = {
        f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"
        for layer in range(config.model.n_layers)
    }
    return buffers | ({"lm_head.weight"} if config.model.tie_embeddings else set())
