"""GPT-NeoX and Pythia: attention and feed-forward layer of one input, rotary positions on a part
of each head, and queries, keys and values in one matrix, head by head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from scaling.arrangements.base import Arrangement, Place, Settings, Theirs, unlike
from scaling.arrangements.decoder import settings
from scaling.arrangements.gpt2 import ACTIVATIONS, their_activation
from scaling.arrangements.rope import SCALINGS, rope_from, scaling_for
from scaling.config.run_config import RunConfig

_BLOCK = {
    "attention.o": "attention.dense",
    "attention_norm": "input_layernorm",
    "feed_forward.up": "mlp.dense_h_to_4h",
    "feed_forward.down": "mlp.dense_4h_to_h",
    "feed_forward_norm": "post_attention_layernorm",
}


def shape_from(values: Mapping[str, Any]) -> Settings:
    theirs = Theirs(values, "gpt_neox")
    parallel = theirs.expect("use_parallel_residual", True, False)
    model = {
        "family": "gpt",
        "n_layers": theirs.take("num_hidden_layers"),
        "d_model": theirs.take("hidden_size"),
        "n_heads": theirs.take("num_attention_heads"),
        "d_ff": theirs.take("intermediate_size"),
        "norm_eps": theirs.take("layer_norm_eps", default=1e-5),
        "activation": theirs.choose("hidden_act", ACTIVATIONS, default="gelu"),
        "tie_embeddings": theirs.take("tie_word_embeddings", default=False),
        "residual": "parallel" if parallel else "serial",
        "norm": "layernorm",
        "norm_position": "pre",
        "bias": True,
    }
    if not theirs.expect("attention_bias", True, False):
        model["attention_bias"] = "none"
    theirs.changes_nothing("attention_dropout", "hidden_dropout", "is_decoder")
    seq_len = theirs.take("max_position_embeddings", default=2048)
    position = rope_from(
        theirs,
        seq_len=seq_len,
        fraction=0.25,
        theta_key="rotary_emb_base",
        fraction_key="rotary_pct",
    )
    theirs.changes_nothing("rope_theta", "partial_rotary_factor")
    theirs.finish()
    return settings(model, {"kind": "full"}, position, seq_len)


def config_for(config: RunConfig) -> dict[str, Any]:
    model, position = config.model, config.position
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "num_hidden_layers": model.n_layers,
        "hidden_size": model.d_model,
        "num_attention_heads": model.n_heads,
        "intermediate_size": model.ff_width,
        "max_position_embeddings": config.train.seq_len,
        "hidden_act": their_activation(model.activation),
        "layer_norm_eps": model.norm_eps,
        "use_parallel_residual": model.residual == "parallel",
        "attention_bias": model.qkv_biased,
        "rotary_emb_base": position.theta,
        "rotary_pct": position.rotary_fraction or 1.0,
        "rope_scaling": scaling_for(config),
    }


def obstacles(config: RunConfig) -> list[str]:
    return unlike(
        config,
        {
            "family": ("gpt",),
            "norm": ("layernorm",),
            "norm_position": ("pre",),
            "residual": ("parallel", "serial"),
            "bias": (True,),
            "attention_bias": ("all", "none"),
            "position": ("rope",),
            "rope_scaling": SCALINGS,
            "rotary_fraction": (config.position.rotary_fraction,),
            "activation": ("gelu", "gelu_exact", "relu", "silu"),
            "d_head": (None, config.model.d_model // config.model.n_heads),
            "n_kv_heads": (None, config.model.n_heads),
        },
    )


def places(config: RunConfig) -> Iterator[Place]:
    model, width = config.model, config.model.head_width
    yield Place("embedding.weight", "gpt_neox.embed_in.weight")
    if not model.tie_embeddings:
        yield Place("head.weight", "embed_out.weight")
    for kind in ("weight", "bias"):
        yield Place(f"final_norm.{kind}", f"gpt_neox.final_layer_norm.{kind}")
        for layer in range(model.n_layers):
            ours, theirs = f"blocks.{layer}", f"gpt_neox.layers.{layer}"
            for mine, yours in _BLOCK.items():
                if mine != "attention.o" or model.output_biased or kind == "weight":
                    yield Place(f"{ours}.{mine}.{kind}", f"{theirs}.{yours}.{kind}")
            if kind == "bias" and not model.qkv_biased:
                continue
            fused = f"{theirs}.attention.query_key_value.{kind}"
            for part, name in enumerate("qkv"):
                rows = [
                    (3 * head + part) * width + row
                    for head in range(model.n_heads)
                    for row in range(width)
                ]
                yield Place(f"{ours}.attention.{name}.{kind}", fused, rows=rows)


def repeated(config: RunConfig) -> set[str]:
    buffers = {
        f"gpt_neox.layers.{layer}.attention.{name}"
        for layer in range(config.model.n_layers)
        for name in ("bias", "masked_bias", "rotary_emb.inv_freq")
    }
    return buffers | ({"embed_out.weight"} if config.model.tie_embeddings else set())


GPT_NEOX = Arrangement(
    "gpt_neox",
    ("GPTNeoXForCausalLM", "GPTNeoXModel"),
    shape_from,
    config_for,
    obstacles,
    places,
    repeated,
    prefix="gpt_neox.",
)
