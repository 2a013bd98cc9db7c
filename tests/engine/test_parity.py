"""Every engine and ZeRO stage follows the loss curve of the one-process reference, and opens the
others' checkpoints."""

from __future__ import annotations

from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scaling.checkpoint.state import seed_step
from scaling.composition.compose import compose
from scaling.config.run_config import RunConfig
from scaling.data.objective import causal_lm
from scaling.engine.build import build_engine
from scaling.model import GenerativeModel
from scaling.parallel.grid import Ranks
from scaling.planner.machines.detect import resolve_cluster
from scaling.planner.run_plan import make_plan
from tests.support.exact import assert_same, in_double, rounding_bound
from tests.support.ranks import run_ranks

G, T, V = 8, 16, 257
N_STEPS = 6
# DeepSpeed keeps bf16 weights, the reference fp32 ones under autocast: the curves differ by
# roundings of 2^-9 in each weight.
BF16_LOSS_RTOL, BF16_NORM_RTOL = 5e-4, 1e-2


def tiny(*overrides: str) -> RunConfig:
    config = compose(
        [
            "model.n_layers=2",
            "model.d_model=32",
            "model.n_heads=2",
            "tokenizer=byte",
            f"train.seq_len={T}",
            f"train.global_batch_size={G}",
            "train.n_tokens=100_000",
            "layout=manual",
            *overrides,
        ]
    )
    return resolve_cluster(config)


def rows_of(step: int, ranks: Ranks) -> np.ndarray:
    rows = np.random.default_rng(step).integers(0, V, size=(G, T + 1))
    share = G // ranks.dp
    return rows[ranks.dp_rank * share : (ranks.dp_rank + 1) * share]


def train(
    ranks: Ranks,
    config: RunConfig,
    first: int,
    last: int,
    load: Path | None = None,
    save: Path | None = None,
) -> list[tuple[float, float]]:
    """Losses and gradient norms of steps [first, last), from a checkpoint and to one."""
    layout = make_plan(config).layout
    with closing(build_engine(config, layout, ranks, torch.device("cpu"))) as engine:
        if load is not None:
            engine.load(load)
        curve = []
        for step in range(first, last):
            seed_step(config.train.seed, step, ranks.rank)
            rows = rows_of(step, ranks)
            size = layout.micro_batch_size
            result = engine.step(
                [
                    causal_lm(rows[at : at + size], np.arange(size))
                    for at in range(0, len(rows), size)
                ],
                lr=1e-2 / (1 + step),
            )
            curve.append((float(result.loss), float(result.grad_norm)))
        evaluation = engine.evaluate([causal_lm(rows_of(999, ranks), np.arange(G // ranks.dp))])
        curve.append((evaluation.loss, float(evaluation.n_targets)))
        if save is not None:
            save.mkdir(exist_ok=True)
            engine.snapshot().write(save / f"rank-{ranks.rank:05d}.safetensors")
        return curve


def train_exactly(ranks: Ranks, *args: Any) -> list[tuple[float, float]]:
    """`train` in float64, in which ranks that add up in another order still agree to 1e-14."""
    with in_double():
        return train(ranks, *args)


@cache
def reference(*overrides: str, exact: bool = True) -> list[tuple[float, float]]:
    """The curve of one plain process, which every layout is held against; callers must not change
    it."""
    return run_ranks(
        train_exactly if exact else train, 1, tiny("layout.dp=1", *overrides), 0, N_STEPS
    )[0]


def deepspeed(stage: int, dp: int, micro: int, *overrides: str) -> RunConfig:
    return tiny(
        f"layout.dp={dp}",
        f"layout.zero_stage={stage}",
        f"layout.micro_batch_size={micro}",
        "layout.engine=deepspeed",
        f"cluster.devices_per_node={dp}",
        *overrides,
    )


@pytest.mark.parametrize(
    ("stage", "dp", "micro"), [(1, 2, 4), (1, 2, 2), (2, 2, 2), (3, 2, 4), (1, 1, 4)]
)
def test_zero_follows_the_reference(stage: int, dp: int, micro: int) -> None:
    for curve in run_ranks(train_exactly, dp, deepspeed(stage, dp, micro), 0, N_STEPS):
        assert_same(np.array(curve), np.array(reference()))


@pytest.mark.parametrize("stage", [1, 3])
def test_fp32_stays_within_its_roundings(stage: int) -> None:
    # Forwards and backwards chain, in each of two layers, sums of D, T and d_ff terms; a gradient
    # sums over G T positions. A step begins where the one before it ended.
    bound = rounding_bound(n_terms=2 * (4 * 32 + T + 4 * 32) + G * T, n_layers=2 * N_STEPS)
    for curve in run_ranks(train, 2, deepspeed(stage, 2, 2), 0, N_STEPS):
        np.testing.assert_allclose(curve, reference(exact=False), rtol=bound)


@pytest.mark.parametrize(("stage", "micro"), [(1, 4), (2, 2), (3, 4)])
def test_clipping_uses_the_norm_over_all_ranks(stage: int, micro: int) -> None:
    # Adam forgets the gradients' scale but for eps: a large one lets the clipping factor show.
    free, clipped = (
        ("optim.eps=1e-3", "optim.grad_clip=0"),
        ("optim.eps=1e-3", "optim.grad_clip=0.25"),
    )
    expected = reference(*clipped)
    assert min(norm for _, norm in expected[:-1]) > 0.25, "the clipping never acts"
    differences = np.array(expected[1:]) / np.array(reference(*free)[1:]) - 1
    assert abs(differences).max() > 1e-3, "the clipping does not show"
    for curve in run_ranks(train_exactly, 2, deepspeed(stage, 2, micro, *clipped), 0, N_STEPS):
        assert_same(np.array(curve), np.array(expected))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bf16_stays_within_its_roundings(stage: int) -> None:
    expected = np.array(reference("precision=bf16", exact=False))
    assert abs(expected - np.array(reference())).max() > 1e-5, "bf16 is not on"
    curve = np.array(run_ranks(train, 2, deepspeed(stage, 2, 4, "precision=bf16"), 0, N_STEPS)[0])
    np.testing.assert_allclose(curve[:, 0], expected[:, 0], rtol=BF16_LOSS_RTOL)
    np.testing.assert_allclose(curve[:, 1], expected[:, 1], rtol=BF16_NORM_RTOL)


@pytest.mark.parametrize("stage", [1, 3])
def test_dropout_is_repeated_and_continued_bit_for_bit(stage: int, tmp_path: Path) -> None:
    config = deepspeed(stage, 2, 2, "model.dropout=0.3", "attention.dropout=0.2")
    unbroken = run_ranks(train, 2, config, 0, N_STEPS)[0]
    assert unbroken[0] != run_ranks(train, 2, deepspeed(stage, 2, 2), 0, 1)[0][0], (
        "dropout is not on"
    )
    first = run_ranks(train, 2, config, 0, 3, None, tmp_path)[0]
    assert first[:3] + run_ranks(train, 2, config, 3, N_STEPS, tmp_path)[0] == unbroken


def whole(ranks: Ranks, config: RunConfig, directory: Path) -> tuple[list[float], list[int]]:
    """Logits of some tokens by the engine's whole model, loaded from a checkpoint, and how its
    greedy text continues."""
    from scaling.inference.sampling import generate

    place = make_plan(config).layout
    with in_double(), closing(build_engine(config, place, ranks, torch.device("cpu"))) as engine:
        engine.load(directory)
        model = engine.whole_model().eval()
        assert isinstance(model, GenerativeModel)
        with torch.no_grad():
            logits = model(torch.arange(T)[None])
        return logits.flatten().tolist(), generate(
            model, [1, 2, 3], 8, temperature=0, seed=0, context_limit=T
        )


@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize("position", ["rope", "learned"])
def test_the_whole_model_generates_what_the_reference_does(
    stage: int, position: str, tmp_path: Path
) -> None:
    overrides = (f"position={position}",)
    run_ranks(train_exactly, 1, tiny("layout.dp=1", *overrides), 0, 2, None, tmp_path)
    logits, text = run_ranks(whole, 1, tiny("layout.dp=1", *overrides), tmp_path)[0]
    for found, generated in run_ranks(whole, 2, deepspeed(stage, 2, 4, *overrides), tmp_path):
        assert_same(np.array(found), np.array(logits))
        assert generated == text


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_resuming_on_the_same_layout_is_bit_identical(stage: int, tmp_path: Path) -> None:
    config = deepspeed(stage, 2, 2)
    unbroken = run_ranks(train, 2, config, 0, N_STEPS)[0]
    first = run_ranks(train, 2, config, 0, 3, None, tmp_path)[0]
    second = run_ranks(train, 2, config, 3, N_STEPS, tmp_path)[0]
    assert first[:3] + second == unbroken


@pytest.mark.parametrize(("written", "read"), [("reference", 1), (1, 3), (3, "reference"), (2, 1)])
def test_a_checkpoint_opens_under_another_layout(
    written: int | str, read: int | str, tmp_path: Path
) -> None:
    expected = reference()

    def half(kind: int | str, *args: Any) -> list[tuple[float, float]]:
        if kind == "reference":
            return run_ranks(train_exactly, 1, tiny("layout.dp=1"), *args)[0]
        return run_ranks(train_exactly, 2, deepspeed(int(kind), 2, 4), *args)[0]

    first = half(written, 0, 3, None, tmp_path)
    second = half(read, 3, N_STEPS, tmp_path)
    assert_same(np.array(first[:3] + second), np.array(expected))
