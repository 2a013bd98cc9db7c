"""The GPT family: causality, cached decoding, sizes, precision, recomputation, compilation."""

from __future__ import annotations

import tracemalloc

import pytest
import torch

from scaling.batch import Batch
from scaling.config.run_config import RunConfig
from scaling.model import LanguageModel, build_model, initialise
from tests.support.configs import MODELS, composed
from tests.support.exact import assert_same, rounding_bound

DOUBLE = pytest.mark.usefixtures("double")
SHAPE = (
    "model.n_layers=2",
    "model.d_model=48",
    "model.n_heads=6",
    "tokenizer.vocab_size=300",
    "train.seq_len=32",
)
ARRANGEMENTS = {
    "gpt2": (
        "model.activation=gelu",
        "model.norm=layernorm",
        "model.bias=true",
        "position=learned",
    ),
    "llama": ("model.n_kv_heads=2", "model.tie_embeddings=false"),
    "bare": ("position=none", "model.norm=layernorm", "model.n_kv_heads=1"),
}
arrangements = pytest.mark.parametrize("name", ARRANGEMENTS)


def config_of(name: str, *overrides: str) -> RunConfig:
    return composed(*SHAPE, *ARRANGEMENTS[name], *overrides)


def build(config: RunConfig, std: float = 0.1) -> LanguageModel:
    """Build a model whose weights are large enough for attention to be far from uniform."""
    model = build_model(config)
    model.config = model.config.model_copy(update={"init_std": std})
    initialise(model, 0)
    return model


def tokens_of(B: int, T: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 300, (B, T), generator=torch.Generator().manual_seed(seed))


@arrangements
@DOUBLE
def test_no_logit_depends_on_the_future(name: str) -> None:
    model = build(config_of(name)).eval()
    tokens = tokens_of(2, 32)
    before = model(tokens)
    for t in (1, 13, 31):
        changed = tokens.clone()
        changed[:, t:] = (changed[:, t:] + 1 + tokens_of(2, 32 - t, seed=t) % 200) % 300
        after = model(changed)
        assert_same(after[:, :t], before[:, :t])
        assert (after[:, t:] - before[:, t:]).abs().amax(dim=-1).min() > 1e-3


@arrangements
@pytest.mark.parametrize("pieces", [[1] * 12, [7, 1, 1, 3], [12]])
@DOUBLE
def test_cached_decoding_equals_the_full_forward(name: str, pieces: list[int]) -> None:
    model = build(config_of(name)).eval()
    tokens = tokens_of(2, 12)
    caches, parts, start = model.new_caches(32), [], 0
    for length in pieces:
        parts.append(model(tokens[:, start : start + length], caches))
        start += length
    assert_same(torch.cat(parts, dim=1), model(tokens))


def test_parameter_counts_by_hand() -> None:
    d, V, T = 48, 300, 32
    gelu = 4 * d * d + 4 * d + 2 * 4 * d * d + 4 * d + d + 4 * d
    swiglu = d * d + 2 * d * 16 + d * d + 3 * d * 128 + 2 * d
    expected = {"gpt2": V * d + T * d + 2 * gelu + 2 * d, "llama": 2 * V * d + 2 * swiglu + d}
    for name, n_params in expected.items():
        assert (
            sum(p.numel() for p in build_model(config_of(name), device="meta").parameters())
            == n_params
        ), name


@pytest.mark.parametrize("name", MODELS)
def test_every_size_builds_on_meta_without_memory(name: str) -> None:
    config = composed(f"model={name}")
    tracemalloc.start()
    model = build_model(config, device="meta")
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert all(p.is_meta for p in model.parameters())
    assert not list(model.buffers())
    assert peak_bytes < 50e6


def test_loss_is_the_cross_entropy_of_the_logits() -> None:
    model = build(config_of("llama")).eval()
    tokens, targets = tokens_of(2, 32), tokens_of(2, 32, seed=1)
    targets[0, :5] = -100
    loss, count, _ = model.loss(Batch(tokens, targets))
    expected = torch.nn.functional.cross_entropy(
        model(tokens).flatten(0, 1), targets.flatten(), reduction="sum"
    )
    assert loss.dtype == torch.float32
    assert count.dtype == torch.int64
    assert int(count) == 59
    # Each of 59 losses of up to 10 sums over D terms and V.
    bound = rounding_bound(n_terms=48 + 300, scale=10) * 59
    torch.testing.assert_close(loss, expected, rtol=0, atol=bound)


def gradients(model: LanguageModel, *, seed: int = 0) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    loss, count, _ = model.loss(Batch(tokens_of(2, 32), tokens_of(2, 32, seed=1)))
    (loss / count).backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters()}


@arrangements
def test_recomputed_blocks_give_the_same_gradients(name: str) -> None:
    model = build(config_of(name, "model.dropout=0.1"))
    plain_loss, plain = gradients(model)
    calls = []
    model.blocks[0].attention.register_forward_hook(lambda *_: calls.append(1))
    model.set_activation_checkpointing("full")
    loss, recomputed = gradients(model)
    assert len(calls) == 2
    assert loss == plain_loss
    for parameter, grad in plain.items():
        torch.testing.assert_close(recomputed[parameter], grad, atol=0, rtol=0)
    model.set_activation_checkpointing("none")
    calls.clear()
    gradients(model)
    assert len(calls) == 1


def test_dropout_acts_in_training_only() -> None:
    model = build(config_of("llama", "model.dropout=0.5"))
    tokens = tokens_of(1, 8)
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


@arrangements
def test_bf16_by_autocast_and_by_casting_stay_near_fp32(name: str) -> None:
    # bf16 keeps 8 bits: 2^-9 relative per rounding, a few dozen roundings in a row.
    model = build(config_of(name), std=0.05)
    exact_loss, exact = gradients(model)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _, _ = model.loss(Batch(tokens_of(2, 32), tokens_of(2, 32, seed=1)))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact_loss, rel=2e-3)
    cast_loss, cast = gradients(model.bfloat16())
    assert cast_loss == pytest.approx(exact_loss, rel=2e-3)
    total = float(torch.stack([grad.norm() for grad in exact.values()]).norm())
    for parameter, grad in exact.items():
        assert cast[parameter].dtype == torch.bfloat16
        # Keys' biases, which softmax cancels, have gradients of nothing but rounding: hence a
        # floor.
        assert (cast[parameter].float() - grad).norm() < 0.05 * max(
            float(grad.norm()), 0.01 * total
        ), parameter


def test_learned_positions_refuse_more_than_they_hold() -> None:
    model = build(config_of("gpt2"))
    with pytest.raises(ValueError, match="knows 32 positions, and was given 33"):
        model(tokens_of(1, 33))


@pytest.mark.slow
def test_compiled_blocks_keep_names_and_values() -> None:
    model = build(config_of("llama"))
    plain_loss, plain = gradients(model)
    model.compile_blocks()
    loss, compiled = gradients(model)
    # Inductor fuses, so it rounds elsewhere; both sides run on this machine. The bound is some 80
    # roundings of eps = 1.2e-7, and for a gradient ten times that.
    assert loss == pytest.approx(plain_loss, rel=1e-5)
    for parameter, grad in plain.items():
        torch.testing.assert_close(compiled[parameter], grad, atol=1e-5, rtol=1e-4)
