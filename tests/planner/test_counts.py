"""Parameter and FLOP counts against published models, hand arithmetic and the real module."""

from __future__ import annotations

import pytest

from scaling.planner.cost.counts import block_matmul_params, block_params, count
from tests.support.configs import MODELS, composed

GPT2 = ("tokenizer.vocab_size=50257", "train.seq_len=1024")


def test_gpt2_small_has_its_published_size() -> None:
    counts = count(composed("model=gpt_125m", *GPT2))
    assert counts.n_params == 124_439_808
    assert counts.n_params_embedding == 50257 * 768 + 1024 * 768
    # 12 blocks of 12 d^2 weights, 13 d biases and norms, and the final norm.
    assert counts.n_params_non_embedding == 12 * (12 * 768**2 + 13 * 768) + 2 * 768


def test_gpt2_xl_has_its_published_size() -> None:
    shape = ("model.n_layers=48", "model.d_model=1600", "model.n_heads=25")
    assert count(composed("model=gpt_125m", *GPT2, *shape)).n_params == 1_557_611_200


def test_llama_2_70b_has_its_published_size() -> None:
    assert count(composed("model=gpt_70b")).n_params == 68_976_648_192


def test_published_names_mean_sizes_near_them() -> None:
    sizes = {
        "125m": 125e6,
        "350m": 350e6,
        "760m": 760e6,
        "1b": 1.3e9,
        "3b": 2.7e9,
        "7b": 6.7e9,
        "13b": 13e9,
        "30b": 30e9,
        "70b": 70e9,
        "175b": 175e9,
        "50m": 50e6,
    }
    for name, size in sizes.items():
        assert count(composed(f"model=gpt_{name}")).n_params == pytest.approx(size, rel=0.04), name


def test_flops_of_nano_by_hand() -> None:
    # Attention 4 * 128^2, swiglu 3 * 128 * 384; head 4096 * 128; attention over 256 positions of
    # 128 values.
    config = composed()  # gpt_nano of four layers
    block = 4 * 128**2 + 3 * 128 * 384
    assert block_matmul_params(config.model) == block
    assert count(config).flops_per_token == 6 * (4 * block + 4096 * 128) + 12 * 4 * 256 * 128


def test_grouped_queries_and_odd_heads() -> None:
    config = composed(
        "model.n_heads=6",
        "model.n_kv_heads=2",
        "model.d_head=32",
        "model.bias=true",
        "model.norm=layernorm",
    )
    q, kv, d, ff = 192, 64, 128, 384
    assert block_matmul_params(config.model) == d * (2 * q + 2 * kv + 3 * ff)
    assert (
        block_params(config.model)
        == d * (2 * q + 2 * kv + 3 * ff) + (q + 2 * kv + d) + (2 * ff + d) + 4 * d
    )


def test_the_head_counts_in_flops_tied_or_not() -> None:
    tied, untied = (
        count(composed("model.tie_embeddings=true")),
        count(composed("model.tie_embeddings=false")),
    )
    assert untied.n_params - tied.n_params == 4096 * 128
    assert untied.n_params_non_embedding == tied.n_params_non_embedding
    assert untied.flops_per_token == tied.flops_per_token


VARIANTS = [
    ("model.bias=true",),
    ("model.norm=layernorm",),
    ("model.norm=layernorm", "model.bias=true", "model.activation=gelu", "position=learned"),
    ("model.tie_embeddings=false", "model.n_kv_heads=2", "position=none"),
    ("model.norm_position=post", "model.d_embedding=32", "model.share_layers=true"),
    ("model.d_embedding=32", "model.tie_embeddings=false", "model.activation=relu"),
    ("model.n_experts=4", "model.experts_per_token=2", "model.bias=true", "model.activation=geglu"),
    (
        "model=bert_tiny",
        "objective.sentence_order=true",
        "model.d_embedding=64",
        "model.bias=false",
    ),
    ("model=bert_tiny", "model.tie_embeddings=false", "model.norm_position=pre"),
    ("model=bert_tiny", "model.share_layers=true", "model.n_experts=2", "model.norm=rmsnorm"),
    ("model=t5_tiny", "model.tie_embeddings=true", "model.n_kv_heads=2", "model.share_layers=true"),
    ("model=t5_tiny", "model.n_experts=3", "objective=prefix_lm", "position=learned"),
    ("model=transformer_base", "model.d_embedding=128", "model.norm_position=pre"),
    ("model.qk_norm=head", "model.norm=layernorm", "model.bias=true", "model.n_kv_heads=2"),
    ("model.norm_position=sandwich", "model.norm=rmsnorm_one", "model.scale_embedding=true"),
    ("model.residual=parallel", "model.bias=true", "model.head_bias=true"),
    ("model.residual=parallel_one_norm", "model.attention_bias=qkv", "model.activation=silu"),
    ("model.attention_bias=all", "model.embedding_norm=true", "model.first_norm=false"),
    ("model.bias=true", "model.attention_bias=none", "model.activation=geglu_exact"),
    ("position=learned", "position.first_row=2", "model.tie_embeddings=false"),
    ("attention.pattern=[local,full]", "attention.window=16", "attention.score_cap=20"),
    ("model=bert_tiny", "model.factorised=input", "model.d_embedding=64", "model.n_segments=1"),
    ("model=bert_tiny", "model.n_segments=0", "model.norm_position=pre", "model.first_norm=false"),
    ("model=t5_tiny", "model.norm_position=sandwich", "model.head_bias=true"),
    ("model=transformer_base", "model.embedding_norm=true", "position.halves=true"),
]


@pytest.mark.parametrize(
    "overrides", [*((f"model={name}",) for name in MODELS), *VARIANTS], ids=",".join
)
def test_counts_equal_the_real_module(overrides: tuple[str, ...]) -> None:
    import torch

    from scaling.model import build_model

    config = composed(*overrides)
    module = build_model(config, torch.device("meta"))
    sizes = {name: parameter.numel() for name, parameter in module.named_parameters()}
    outside = (
        "embedding.",
        "segments.",
        "position.",
        "input_projection.",
        "encoder.position.",
        "decoder.position.",
        "head.",
        "decoder.weight",
    )
    embedding = sum(size for name, size in sizes.items() if name.startswith(outside))
    counts = count(config)
    assert sum(sizes.values()) == counts.n_params
    assert embedding == counts.n_params_embedding


def test_published_encoders_and_encoder_decoders_have_their_sizes() -> None:
    # bert-base-uncased for masked LM, t5-v1_1-small; and 65M and 213M of Vaswani et al. 2017, table
    # 3.
    assert count(composed("model=bert_base", "tokenizer.vocab_size=30522")).n_params == 109_514_298
    assert count(composed("model=t5_small")).n_params == pytest.approx(76_961_152, abs=0)
    for name, size in (("base", 65e6), ("big", 213e6)):
        config = composed(f"model=transformer_{name}", "tokenizer.vocab_size=37000")
        assert count(config).n_params == pytest.approx(size, rel=0.035), name


def test_flops_of_an_encoder_decoder_by_hand() -> None:
    # Encoder 128 positions, decoder 29; d 192, d_ff 512 gated, 4 heads of 48, vocabulary 4096, 3
    # layers each.
    config = composed("model=t5_tiny")
    block, d = 4 * 192**2 + 3 * 192 * 512, 192
    encoder, decoder = 128 * 3 * block, 29 * 3 * block
    cross, head = 3 * (2 * d * d * 29 + 2 * d * d * 128), 29 * d * 4096
    attention = 12 * 3 * d * (128**2 + 29**2 + 128 * 29)
    assert count(config).flops_per_token == round(
        (6 * (encoder + decoder + cross + head) + attention) / 128
    )


def test_only_the_experts_that_a_token_takes_cost_flops() -> None:
    dense = count(composed())
    moe = count(composed("model.n_experts=8", "model.experts_per_token=1"))
    assert moe.flops_per_token - dense.flops_per_token == 6 * 4 * 128 * 8
    assert moe.n_params - dense.n_params == 4 * (7 * 3 * 128 * 384 + 8 * 128)
