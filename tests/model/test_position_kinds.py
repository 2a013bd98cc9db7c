"""Positions against formulas and other implementations, and which attention goes with which
position."""

from __future__ import annotations

import math

import pytest
import torch

from scaling.config.run_config import PositionConfig
from scaling.errors import ConfigError
from scaling.model import build_model, initialise
from scaling.model.attention import ATTENTIONS
from scaling.model.position import POSITIONS, alibi_slopes, bias_grid, rotary_frequencies
from tests.support.configs import composed
from tests.support.exact import ATOL, RTOL, assert_same

DOUBLE = pytest.mark.usefixtures("double")
CPU = torch.device("cpu")
TINY = (
    "model.n_layers=2",
    "model.d_model=48",
    "model.n_heads=6",
    "tokenizer.vocab_size=300",
    "train.seq_len=20",
    "model.init_std=0.2",
)


def at(kind: str, *overrides: str, causal: bool = True) -> torch.nn.Module:
    return POSITIONS[kind](
        composed("model.d_model=48", "model.n_heads=6", f"position={kind}", *overrides),
        causal=causal,
    )


@DOUBLE
def test_sinusoids_are_those_of_the_paper() -> None:
    added = at("sinusoidal").embed(torch.zeros(1, 40, 48), 7)[0]
    for p in (0, 3, 39):
        for i in range(24):
            angle = (p + 7) / 10000 ** (2 * i / 48)
            assert float(added[p, 2 * i]) == pytest.approx(math.sin(angle), abs=ATOL)
            assert float(added[p, 2 * i + 1]) == pytest.approx(math.cos(angle), abs=ATOL)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("n_buckets", "max_distance"), [(32, 128), (8, 20), (4, 3)])
@DOUBLE
def test_buckets_are_those_of_t5(causal: bool, n_buckets: int, max_distance: int) -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    position = at(
        "relative_bias",
        f"position.n_buckets={n_buckets}",
        f"position.max_distance={max_distance}",
        causal=causal,
    )
    relative = torch.arange(-300, 301)
    expected = T5Attention._relative_position_bucket(relative, not causal, n_buckets, max_distance)
    assert torch.equal(position.bucket(relative), expected)
    torch.nn.init.normal_(position.table.weight)
    assert_same(position.bias(relative), position.table.weight[expected].T)


@pytest.mark.parametrize("n_heads", [1, 2, 3, 6, 8, 12, 16])
@DOUBLE
def test_slopes_are_those_of_bloom(n_heads: int) -> None:
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    # slope times 0, 1, 2, 3, 4
    theirs = build_alibi_tensor(torch.ones(1, 5), n_heads, torch.float32)[:, 0]
    assert_same(torch.tensor(alibi_slopes(n_heads))[:, None] * torch.arange(5), theirs)


@DOUBLE
def test_alibi_falls_to_both_sides() -> None:
    slopes = torch.tensor(alibi_slopes(6))
    assert torch.equal(
        at("alibi").bias(torch.tensor([-5, 0, 3])), -slopes[:, None] * torch.tensor([5, 0, 3])
    )


@DOUBLE
def test_a_grid_is_the_bias_of_every_pair() -> None:
    bias = at("alibi").bias
    q, k = torch.arange(11, 18), torch.arange(4, 23)
    assert torch.equal(bias_grid(bias, 11, 7, 4, 19, CPU), bias(k[None, :] - q[:, None]))


@pytest.mark.parametrize(("scaling", "theirs"), [("linear", "linear"), ("yarn", "yarn")])
@pytest.mark.parametrize(("factor", "original"), [(4.0, 512), (32.0, 4096)])
@DOUBLE
def test_scaled_frequencies_are_those_of_transformers(
    scaling: str, theirs: str, factor: float, original: int
) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rope = {"rope_type": theirs, "factor": factor, "rope_theta": 10000.0}
    if scaling == "yarn":
        rope["original_max_position_embeddings"] = original
    config = LlamaConfig(
        hidden_size=256,
        num_attention_heads=4,
        max_position_embeddings=int(original * factor),
        rope_parameters=rope,
    )
    expected = LlamaRotaryEmbedding(config)
    extra = (f"position.original_seq_len={original}",) if scaling == "yarn" else ()
    position = POSITIONS["rope"](
        composed(
            "model.d_model=256",
            "model.n_heads=4",
            f"position.scaling={scaling}",
            f"position.scaling_factor={factor}",
            *extra,
        )
    )
    frequencies = rotary_frequencies(position.position, 64, 1, CPU)
    assert_same(frequencies, expected.inv_freq)
    cos, sin = expected(torch.zeros(1), torch.arange(3, 90)[None])
    rotation = position.rotation(3, 87, CPU)
    assert_same(rotation.cos_T1K[:, 0], cos[0])
    assert_same(rotation.sin_T1K[:, 0, 32:], sin[0, :, 32:])


@DOUBLE
def test_ntk_stretches_the_slowest_pair_and_keeps_the_fastest() -> None:
    plain = rotary_frequencies(PositionConfig(kind="rope"), 64, 256, CPU)
    scaled = rotary_frequencies(
        PositionConfig(kind="rope", scaling="ntk", scaling_factor=8.0), 64, 256, CPU
    )
    assert float(scaled[0]) == float(plain[0])
    assert float(scaled[-1]) == pytest.approx(float(plain[-1]) / 8, rel=RTOL)


@DOUBLE
def test_yarn_reads_the_length_of_training_from_the_factor() -> None:
    given = PositionConfig(kind="rope", scaling="yarn", scaling_factor=4.0, original_seq_len=64)
    derived = PositionConfig(kind="rope", scaling="yarn", scaling_factor=4.0)
    assert torch.equal(
        rotary_frequencies(given, 64, 999, CPU), rotary_frequencies(derived, 64, 256, CPU)
    )


REFUSED = {
    ("linear", "relative_bias"): "adds any number to each score",
    ("relative", "rope"): "absolute position",
}


@pytest.mark.parametrize("kind", ATTENTIONS)
@pytest.mark.parametrize("position", POSITIONS)
@DOUBLE
def test_every_combination_works_or_says_why_not(kind: str, position: str) -> None:
    """Working: a loss with a gradient for every parameter, no sight of the future, and a cache that
    agrees."""
    overrides = (*TINY, f"attention={kind}", f"position={position}")
    if kind == "gqa":
        overrides += ("attention.n_kv_heads=3",)
    if reason := REFUSED.get((kind, position)):
        with pytest.raises(ConfigError, match=reason):
            composed(*overrides)
        return
    extra = {
        "local": "attention.window=5",
        "hierarchical": "attention.block=4",
        "strided": "attention.stride=4",
    }.get(kind)
    config = composed(*overrides, *([extra] if extra else []))
    model = build_model(config)
    initialise(model, 0)
    tokens = torch.randint(0, 300, (2, 20), generator=torch.Generator().manual_seed(0))
    logits = model(tokens)
    logits.logsumexp(-1).sum().backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters()
    )
    changed = tokens.clone()
    changed[:, 12:] = (changed[:, 12:] + 7) % 300
    with torch.no_grad():
        assert_same(model(changed)[:, :12], logits[:, :12])
        caches = model.new_caches(20)
        parts = [
            model(tokens[:, :9], caches),
            *(model(tokens[:, t : t + 1], caches) for t in range(9, 20)),
        ]
    assert_same(torch.cat(parts, dim=1), logits)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (("attention=mqa", "model.n_kv_heads=2"), "model.n_kv_heads=2, but attention=mqa has 1"),
        (
            ("attention=gqa", "attention.n_kv_heads=3"),
            "attention.n_kv_heads=3 does not divide n_heads=4",
        ),
        (("attention=gqa", "model.n_heads=9", "model.d_model=144"), "give attention.n_kv_heads"),
        (
            ("attention.window=4",),
            "attention.window is set, but attention=full does not read it, only attention=local",
        ),
        (("attention=local", "attention.window=null"), "attention=local needs attention.window"),
        (("attention=linear", "attention.dropout=0.1"), "no attention weights"),
        (("position.scaling=yarn",), "need each other"),
        (("position.original_seq_len=64",), "only position.scaling=yarn or llama3 reads it"),
        (("position=alibi", "position.n_buckets=32"), "only position=relative_bias"),
        (("position=relative_bias", "position.n_buckets=30"), "multiple of 4"),
        (("position=relative_bias", "position.max_distance=16"), "must be above"),
        (("model.d_head=15",), "rotates pairs"),
        (("position=sinusoidal", "model.d_model=33", "model.d_head=8"), "d_model=33 is odd"),
        (("attention=windowed",), "attention=windowed is not an option"),
    ],
)
def test_bad_choices_are_refused(overrides: tuple[str, ...], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        composed(*overrides)


def test_heads_of_gqa_and_mqa_are_the_models() -> None:
    heads = {
        o: composed("model.n_heads=8", *o).model.kv_heads
        for o in [
            ("attention=gqa",),
            ("attention=mqa",),
            ("attention=gqa", "attention.n_kv_heads=4"),
            (),
        ]
    }
    assert list(heads.values()) == [2, 1, 4, 8]


def test_run_ids_ignore_keys_that_a_kind_does_not_read() -> None:
    assert composed().semantic()["attention"] == {"kind": "full", "dropout": 0.0}
    assert composed().semantic()["position"] == {"kind": "rope", "theta": 10000.0}
