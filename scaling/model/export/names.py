"""Weights under our names <-> under those of the transformers library's GPT-2, Llama, BERT and T5.

A model has a counterpart there when its configuration is one of those arrangements; `arrangement`
says which, or why not. Only names, transposes and a fused matrix differ: every number is the same
on both sides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from scaling.config.run_config import RunConfig
from scaling.errors import ConfigError

Arrangement = Literal["gpt2", "llama", "bert", "t5"]


class Place(NamedTuple):
    """Where a parameter of ours lies among theirs.

    transposed  theirs is (in, out), as GPT-2's Conv1D holds matrices
    part        which third of theirs it is, where queries, keys and values are one
    """

    name: str
    transposed: bool = False
    part: int | None = None


def arrangement(config: RunConfig) -> Arrangement:
    """The counterpart of a model. Raises ConfigError with all that keeps it from having one."""
    model = config.model
    wanted: dict[str, dict[str, tuple[object, ...]]] = {
        "gpt2": {
            "norm": ("layernorm",),
            "norm_position": ("pre",),
            "bias": (True,),
            "position": ("learned",),
            "activation": ("gelu", "gelu_exact", "relu"),
            "tie_embeddings": (True,),
            "d_head": (None,),
            "n_kv_heads": (None, model.n_heads),
        },
        "llama": {
            "norm": ("rmsnorm",),
            "norm_position": ("pre",),
            "bias": (False,),
            "position": ("rope",),
            "activation": ("swiglu",),
            "rope_scaling": (None,),
        },
        "bert": {
            "norm": ("layernorm",),
            "norm_position": ("post",),
            "bias": (True,),
            "position": ("learned",),
            "activation": ("gelu", "gelu_exact", "relu"),
            "tie_embeddings": (True,),
            "d_head": (None,),
            "n_kv_heads": (None, model.n_heads),
        },
        "t5": {
            "norm": ("rmsnorm",),
            "norm_position": ("pre",),
            "bias": (False,),
            "position": ("relative_bias",),
            "activation": ("geglu", "relu"),
            "n_kv_heads": (None, model.n_heads),
        },
    }
    candidates: dict[str, tuple[Arrangement, ...]] = {
        "gpt": ("gpt2", "llama"),
        "bert": ("bert",),
        "t5": ("t5",),
    }
    found = model.model_dump() | {
        "position": config.position.kind,
        "rope_scaling": config.position.scaling,
    }
    found |= {"attention": config.attention.kind, "d_embedding": model.embedding_width}
    common = {
        "attention": ("full", "gqa", "mqa"),
        "share_layers": (False,),
        "n_experts": (1,),
        "d_embedding": (model.d_model,),
    }
    common["parametrization"] = ("standard",)
    reasons = []
    for name in candidates.get(model.family, ()):
        wrong = [
            f"{key}={found[key]}"
            for key, good in (common | wanted[name]).items()
            if found[key] not in good
        ]
        if not wrong:
            return name
        reasons.append(f"{name} has not {', '.join(wrong)}")
    raise ConfigError(
        f"the transformers library has no counterpart of model={model.name}",
        where="; ".join(reasons) or f"model.family={model.family}",
        fix="It has one of the GPT-2, Llama, BERT and T5 arrangements: docs/models.md lists their settings.",
    )


def to_transformers(config: RunConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights, as in named_parameters, under their names; contiguous copies. Tied matrices are
    given once."""
    return {
        theirs: joined(sources, [weights[name].detach() for name, _ in sources])
        for theirs, sources in parts(config).items()
    }


def parts(config: RunConfig) -> dict[str, list[tuple[str, Place]]]:
    """For each of their weights those of ours that it is made of, in order."""
    found: dict[str, list[tuple[str, Place]]] = {}
    for name, place in names(config).items():
        found.setdefault(place.name, []).append((name, place))
    return {
        theirs: sorted(sources, key=lambda source: source[1].part or 0)
        for theirs, sources in found.items()
    }


def joined(sources: Sequence[tuple[str, Place]], values: Sequence[Tensor]) -> Tensor:
    """One of their weights, made of the `values` of its `parts`; a contiguous copy."""
    turned = [
        value.t() if place.transposed and value.ndim == 2 else value
        for (_, place), value in zip(sources, values, strict=True)
    ]
    return (
        torch.cat(turned, dim=-1)
        if len(turned) > 1
        else turned[0].clone(memory_format=torch.contiguous_format)
    )


def from_transformers(config: RunConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their weights under our names. Raises ConfigError for one that is missing, and for one that
    would be left over."""
    places = names(config)
    used = {place.name for place in places.values()}
    missing, extra = (
        sorted(used - weights.keys()),
        sorted(weights.keys() - used - _repeated(config)),
    )
    if missing or extra:
        found = (f"it lacks {missing[0]}" if missing else f"it has {extra[0]}") + (
            f" and {len(missing) + len(extra) - 1} more do not fit"
            if len(missing) + len(extra) > 1
            else ""
        )
        raise ConfigError(
            f"the weights are not of this {arrangement(config)} model: {found}",
            where=f"model={config.model.name}",
        )
    ours = {}
    for name, place in places.items():
        value = weights[place.name]
        value = value if place.part is None else value.chunk(3, dim=-1)[place.part]
        ours[name] = (value.t() if place.transposed and value.ndim == 2 else value).contiguous()
    return ours


def names(config: RunConfig) -> dict[str, Place]:
    """For every parameter of the model its place among theirs. Raises ConfigError when there is no
    counterpart."""
    kind = arrangement(config)
    return dict({"gpt2": _gpt2, "llama": _llama, "bert": _bert, "t5": _t5}[kind](config))


def _repeated(config: RunConfig) -> set[str]:
    """Names under which a state of theirs repeats a tied matrix."""
    tied = {
        "gpt2": {"lm_head.weight"},
        "llama": {"lm_head.weight"} if config.model.tie_embeddings else set(),
        "bert": {
            "cls.predictions.decoder.weight",
            "cls.predictions.decoder.bias",
            "bert.embeddings.position_ids",
        },
        "t5": {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"},
    }[arrangement(config)]
    if config.model.family == "t5" and config.model.tie_embeddings:
        tied = tied | {"lm_head.weight"}
    return tied


def _both(
    ours: str, theirs: str, *, transposed: bool = False, part: int | None = None
) -> Iterator[tuple[str, Place]]:
    for kind in ("weight", "bias"):
        yield f"{ours}.{kind}", Place(f"{theirs}.{kind}", transposed, part)


def _gpt2(config: RunConfig) -> Iterator[tuple[str, Place]]:
    yield "embedding.weight", Place("transformer.wte.weight")
    yield "position.table.weight", Place("transformer.wpe.weight")
    yield from _both("final_norm", "transformer.ln_f")
    for layer in range(config.model.n_layers):
        ours, theirs = f"blocks.{layer}", f"transformer.h.{layer}"
        yield from _both(f"{ours}.attention_norm", f"{theirs}.ln_1")
        yield from _both(f"{ours}.feed_forward_norm", f"{theirs}.ln_2")
        for part, name in enumerate("qkv"):
            yield from _both(
                f"{ours}.attention.{name}", f"{theirs}.attn.c_attn", transposed=True, part=part
            )
        yield from _both(f"{ours}.attention.o", f"{theirs}.attn.c_proj", transposed=True)
        yield from _both(f"{ours}.feed_forward.up", f"{theirs}.mlp.c_fc", transposed=True)
        yield from _both(f"{ours}.feed_forward.down", f"{theirs}.mlp.c_proj", transposed=True)


def _llama(config: RunConfig) -> Iterator[tuple[str, Place]]:
    yield "embedding.weight", Place("model.embed_tokens.weight")
    yield "final_norm.weight", Place("model.norm.weight")
    if not config.model.tie_embeddings:
        yield "head.weight", Place("lm_head.weight")
    pairs = {"attention_norm": "input_layernorm", "feed_forward_norm": "post_attention_layernorm"}
    pairs |= {f"attention.{name}": f"self_attn.{name}_proj" for name in "qkvo"}
    pairs |= {f"feed_forward.{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")}
    for layer in range(config.model.n_layers):
        for ours, theirs in pairs.items():
            yield f"blocks.{layer}.{ours}.weight", Place(f"model.layers.{layer}.{theirs}.weight")


def _bert(config: RunConfig) -> Iterator[tuple[str, Place]]:
    embeddings = {"embedding": "word", "segments": "token_type", "position.table": "position"}
    for ours, theirs in embeddings.items():
        yield f"{ours}.weight", Place(f"bert.embeddings.{theirs}_embeddings.weight")
    yield from _both("embedding_norm", "bert.embeddings.LayerNorm")
    pairs = {
        "attention.q": "attention.self.query",
        "attention.k": "attention.self.key",
        "attention.v": "attention.self.value",
        "attention.o": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "feed_forward.up": "intermediate.dense",
        "feed_forward.down": "output.dense",
        "feed_forward_norm": "output.LayerNorm",
    }
    for layer in range(config.model.n_layers):
        for ours, theirs in pairs.items():
            yield from _both(f"blocks.{layer}.{ours}", f"bert.encoder.layer.{layer}.{theirs}")
    yield from _both("masked_head.dense", "cls.predictions.transform.dense")
    yield from _both("masked_head.norm", "cls.predictions.transform.LayerNorm")
    yield "masked_head.bias", Place("cls.predictions.bias")
    if config.objective.sentence_order:
        yield from _both("pooler", "bert.pooler.dense")
        yield from _both("order_head", "cls.seq_relationship")


def _t5(config: RunConfig) -> Iterator[tuple[str, Place]]:
    model = config.model
    yield "embedding.weight", Place("shared.weight")
    if not model.tie_embeddings:
        yield "head.weight", Place("lm_head.weight")
    wide = (
        {"gate": "wi_0", "up": "wi_1", "down": "wo"} if model.gated else {"up": "wi", "down": "wo"}
    )
    for side, attentions in (
        ("encoder", ["SelfAttention"]),
        ("decoder", ["SelfAttention", "EncDecAttention"]),
    ):
        first = f"{side}.block.0.layer.0.SelfAttention"
        yield f"{side}.position.table.weight", Place(f"{first}.relative_attention_bias.weight")
        yield f"{side}.final_norm.weight", Place(f"{side}.final_layer_norm.weight")
        for layer in range(model.n_layers):
            ours, theirs = f"{side}.blocks.{layer}", f"{side}.block.{layer}.layer"
            for index, kind in enumerate(attentions):
                name = "attention" if kind == "SelfAttention" else "cross_attention"
                yield f"{ours}.{name}_norm.weight", Place(f"{theirs}.{index}.layer_norm.weight")
                for matrix in "qkvo":
                    yield (
                        f"{ours}.{name}.{matrix}.weight",
                        Place(f"{theirs}.{index}.{kind}.{matrix}.weight"),
                    )
            last = f"{theirs}.{len(attentions)}"
            yield f"{ours}.feed_forward_norm.weight", Place(f"{last}.layer_norm.weight")
            for matrix, name in wide.items():
                yield (
                    f"{ours}.feed_forward.{matrix}.weight",
                    Place(f"{last}.DenseReluDense.{name}.weight"),
                )
