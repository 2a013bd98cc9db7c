"""Any layout is the same mathematics: its losses and gradient norms are those of one plain process.

Shown in float64, where a mistake is not taken for a rounding, and in fp32 for one layout of each
kind.
"""

from __future__ import annotations

import json
import os
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from scaling.engine.build import build_engine
from scaling.engine.deepspeed import settings
from scaling.parallel.grid import Ranks
from scaling.planner.layout import Layout
from tests.model.test_family_models import sequences
from tests.support.exact import assert_same, in_double, rounding_bound
from tests.support.layout_runs import (
    FAMILIES,
    SHAPE,
    G,
    layout,
    reference,
    rule_against,
    run,
    train_exactly,
)
from tests.support.objectives import objective
from tests.support.ranks import run_ranks

N_STEPS = 6
GOLDEN = Path(__file__).parents[1] / "golden" / "exact_curves.json"
# roundings of 2^-9 in weights, activations and what ranks add up
BF16_LOSS_RTOL, BF16_NORM_RTOL = 1e-3, 3e-2

LAYOUTS = {
    "ddp": layout(dp=2, zero_stage=0, engine="ddp"),
    "zero1": layout(dp=2),
    "zero2": layout(dp=2, zero_stage=2),
    "zero3": layout(dp=2, zero_stage=3),
    "tp2": layout(tp=2),
    "tp2-sequence": layout(tp=2, sequence_parallel=True),
    "pp2": layout(pp=2),
    "pp2-dualpipev": layout(pp=2, pp_schedule="dualpipev"),
    "cp2": layout(cp=2),
    "cp2-ring": layout(cp=2, cp_attention="ring"),
    "tp2-pp2": layout(tp=2, pp=2),
    "dp2-tp2-zero1": layout(dp=2, tp=2),
    "dp2-tp2-zero2": layout(dp=2, tp=2, zero_stage=2),
    "dp2-tp2-zero3": layout(dp=2, tp=2, zero_stage=3),
    "dp2-pp2": layout(dp=2, pp=2),
    "tp2-pp2-dualpipev": layout(tp=2, pp=2, pp_schedule="dualpipev"),
    "tp2-cp2-zero2": layout(tp=2, cp=2, zero_stage=2),
    "dp2-cp2-zero3": layout(dp=2, cp=2, zero_stage=3),
    "cp4-ring": layout(cp=4, cp_attention="ring"),
    "tp2-cp2-ring": layout(tp=2, cp=2, cp_attention="ring", sequence_parallel=True),
}


PLACES: dict[str, Layout] = LAYOUTS | {
    "reference": Layout(
        dp=1,
        tp=1,
        pp=1,
        zero_stage=1,
        micro_batch_size=G,
        grad_accum_steps=1,
        activation_checkpointing="none",
        engine="reference",
    ),
    "dp4": layout(dp=4),
}


def more_blocks(family: str, name: str) -> tuple[str, ...]:
    """Where two blocks are fewer than the stages; families of two stacks have four."""
    return ("model.n_layers=4",) if PLACES[name].n_stages > 2 and family in ("gpt", "bert") else ()


def assert_follows_in_fp32(curves: list[list[float]], expected: list[float], n_steps: int) -> None:
    # Forwards and backwards chain, in each of two layers, sums of D, T and d_ff terms; a gradient
    # sums over G T positions. A step begins where the one before it ended.
    bound = rounding_bound(n_terms=2 * (4 * 32 + 16 + 4 * 32) + G * 16, n_layers=2 * n_steps)
    for curve in curves:
        np.testing.assert_allclose(curve, expected, rtol=bound)


def assert_follows(curves: list[list[float]], expected: list[float]) -> None:
    for curve in curves:
        assert_same(np.array(curve), np.array(expected))


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_layout_follows_the_reference(family: str, name: str) -> None:
    overrides = (*FAMILIES[family], *more_blocks(family, name))
    assert_follows(run(overrides, LAYOUTS[name], 0, N_STEPS), reference(N_STEPS, *overrides))


@pytest.mark.parametrize(
    "name", ["ddp", "zero1", "zero3", "tp2-sequence", "pp2", "cp2", "cp2-ring"]
)
def test_fp32_stays_within_its_roundings(name: str) -> None:
    found = run(FAMILIES["gpt"], LAYOUTS[name], 0, N_STEPS, exact=False)
    assert_follows_in_fp32(found, reference(N_STEPS, *FAMILIES["gpt"], exact=False), N_STEPS)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_curves_are_those_of_the_golden_file(family: str) -> None:
    curves = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("SCALING_REWRITE_GOLDEN"):
        curves[family] = reference(N_STEPS, *FAMILIES[family])
        GOLDEN.write_text(json.dumps(curves, indent=1) + "\n")
    # No machine's order of summation moves these by 1e-9: another number is another mathematics.
    assert_same(np.array(reference(N_STEPS, *FAMILIES[family])), np.array(curves[family]))


VARIANTS = {
    "gqa": ("attention=gqa", "model.n_kv_heads=2", "model.bias=true"),
    "mqa": ("attention=mqa",),
    "relative": ("attention=relative", "position=none"),
    "local": ("attention=local", "attention.window=8"),
    "strided": ("attention=strided", "attention.stride=4"),
    "linear": ("attention=linear", "position=sinusoidal"),
    "hierarchical": ("attention=hierarchical", "attention.block=4"),
    "alibi": ("position=alibi",),
    "relative_bias": ("position=relative_bias",),
    "learned": ("position=learned", "model.norm=layernorm", "model.bias=true"),
    "experts": ("model.n_experts=4", "model.experts_per_token=2"),
    "completep": ("model.parametrization=completep", "model.base_width=8", "model.base_layers=1"),
    "parallel": (
        "model.residual=parallel",
        "position.rotary_fraction=0.5",
        "model.norm=layernorm",
        "model.bias=true",
        "model.attention_bias=qkv",
        "model.head_bias=true",
        "model.qk_norm=head",
    ),
    "sandwich": (
        "model.norm_position=sandwich",
        "model.norm=rmsnorm_one",
        "model.scale_embedding=true",
        "model.qk_norm=head",
        "model.logit_cap=3",
        "attention.score_cap=2",
        "attention.score_width=4",
        "attention.pattern=[local,full]",
        "attention.window=8",
        "position.local_theta=100",
    ),
    "capped": (
        "model.residual=parallel_one_norm",
        "model.embedding_norm=true",
        "attention.score_cap=2",
        "attention=gqa",
        "model.activation=geglu_exact",
    ),
    "untied": ("model.tie_embeddings=false", "objective.label_smoothing=0.1"),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["tp2", "tp2-sequence", "pp2", "cp2", "cp2-ring"])
def test_every_kind_of_layer_is_shared_out(variant: str, name: str) -> None:
    overrides = (*FAMILIES["gpt"], *VARIANTS[variant])
    if (rule := rule_against(overrides, LAYOUTS[name])) is not None:
        pytest.skip(rule)
    # In float64 two steps show all that twenty would: the second's gradients are those of the
    # first's weights.
    assert_follows(run(overrides, LAYOUTS[name], 0, 2), reference(2, *overrides))


@pytest.mark.parametrize(
    "name",
    [
        "ddp",
        "zero1",
        "zero2",
        "zero3",
        "tp2",
        "tp2-sequence",
        "pp2",
        "cp2",
        "dp2-tp2-zero3",
        "dp2-pp2",
        "tp2-pp2",
        "tp2-pp2-dualpipev",
        "cp2-ring",
    ],
)
def test_bf16_stays_within_its_roundings(name: str) -> None:
    overrides = (*FAMILIES["gpt"], *more_blocks("gpt", name))
    expected = np.array(reference(6, *overrides, "precision=bf16", exact=False))
    curve = np.array(run((*overrides, "precision=bf16"), LAYOUTS[name], 0, 6, exact=False)[0])
    for found in (expected, curve):
        assert abs(found / np.array(reference(6, *overrides)) - 1).max() > 1e-4, "bf16 is not on"
    np.testing.assert_allclose(
        np.delete(curve, slice(1, -1, 2)), np.delete(expected, slice(1, -1, 2)), rtol=BF16_LOSS_RTOL
    )
    np.testing.assert_allclose(curve[1:-1:2], expected[1:-1:2], rtol=BF16_NORM_RTOL)


def computed_in(ranks: Ranks, overrides: tuple[str, ...], layout: Layout) -> set[torch.dtype]:
    """The dtypes in which this rank's linear layers give their outputs."""
    config, make_batch = objective(*SHAPE, *overrides)
    ranks = ranks.laid_out(tp=layout.tp, pp=layout.pp, cp=layout.cp)
    found = set[torch.dtype]()
    with closing(build_engine(config, layout, ranks, torch.device("cpu"))) as engine:
        for module in engine.model.modules():  # type: ignore[attr-defined]
            if isinstance(module, torch.nn.Linear):
                module.register_forward_hook(
                    lambda _module, _inputs, output: found.add(output.dtype)
                )
        share = G // ranks.dp
        ks = [
            np.arange(k, k + layout.micro_batch_size)
            for k in range(0, share, layout.micro_batch_size)
        ]
        engine.step([make_batch(sequences(config, k), k) for k in ks], lr=1e-3)
    return found


@pytest.mark.parametrize(
    "name", ["reference", "ddp", "zero1", "zero2", "zero3", "dp2-tp2-zero3", "pp2", "cp2"]
)
@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_products_are_made_in_the_precision_asked_for(
    name: str, precision: str, dtype: torch.dtype
) -> None:
    overrides = (*FAMILIES["gpt"], f"precision={precision}")
    found = run_ranks(computed_in, PLACES[name].world_size, overrides, PLACES[name])
    assert found == [{dtype}] * PLACES[name].world_size


@pytest.mark.parametrize("name", ["tp2", "tp2-sequence", "pp2", "zero3"])
def test_clipping_uses_the_norm_of_the_whole_model(name: str) -> None:
    # Adam forgets the gradients' scale but for eps: a large one lets the clipping factor show.
    free, clipped = (
        ("optim.eps=1e-3", "optim.grad_clip=0"),
        ("optim.eps=1e-3", "optim.grad_clip=0.25"),
    )
    expected = reference(4, *FAMILIES["gpt"], *clipped)
    differences = np.array(expected[2:]) / np.array(reference(4, *FAMILIES["gpt"], *free)[2:]) - 1
    assert abs(differences).max() > 1e-3, "the clipping does not show"
    assert_follows(run((*FAMILIES["gpt"], *clipped), LAYOUTS[name], 0, 4), expected)


def evaluate_one(ranks: Ranks, overrides: tuple[str, ...], layout: Layout) -> float:
    config, make_batch = objective(*SHAPE, *overrides)
    ranks = ranks.laid_out(tp=1, pp=layout.pp, cp=1)
    with in_double(), closing(build_engine(config, layout, ranks, torch.device("cpu"))) as engine:
        return engine.evaluate([make_batch(sequences(config, np.arange(2)), np.arange(2))]).loss


@pytest.mark.parametrize("name", ["pp2", "pp2-dualpipev"])
def test_fewer_batches_than_stages_are_evaluated(name: str) -> None:
    overrides = (*FAMILIES["gpt"], "model.n_layers=4")
    expected = run_ranks(evaluate_one, 1, overrides, PLACES["reference"])
    found = run_ranks(evaluate_one, 2, overrides, LAYOUTS[name])
    assert_same(np.array(found), np.array(expected * 2))


def train_in_small_buckets(
    ranks: Ranks, overrides: tuple[str, ...], layout: Layout, n_steps: int
) -> list[float]:
    before, settings.REDUCE_BUCKET = settings.REDUCE_BUCKET, 5_000  # a tenth of the model
    try:
        return train_exactly(ranks, overrides, layout, 0, n_steps)
    finally:
        settings.REDUCE_BUCKET = before


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3", "dp2-tp2-zero2"])
def test_gradients_that_leave_in_many_buckets_are_the_same(name: str) -> None:
    layout = LAYOUTS[name]
    found = run_ranks(train_in_small_buckets, layout.world_size, FAMILIES["gpt"], layout, 4)
    assert_follows(found, reference(4, *FAMILIES["gpt"]))


@pytest.mark.parametrize("kind", ["selective", "full"])
@pytest.mark.parametrize("name", ["zero1", "tp2-sequence", "pp2"])
def test_recomputation_changes_nothing(name: str, kind: str) -> None:
    from dataclasses import replace

    found = run(FAMILIES["gpt"], replace(LAYOUTS[name], activation_checkpointing=kind), 0, 4)
    assert found == run(FAMILIES["gpt"], LAYOUTS[name], 0, 4)


@pytest.mark.parametrize(
    ("stage", "offload"), [(1, "optimizer"), (2, "optimizer"), (3, "optimizer"), (3, "parameters")]
)
def test_offloaded_states_follow_the_reference(stage: int, offload: str, tmp_path: Path) -> None:
    # What DeepSpeed steps on the host it keeps in fp32, whatever the model is in.
    offloaded = layout(dp=2, zero_stage=stage, offload=offload)
    first = run(FAMILIES["gpt"], offloaded, 0, 3, None, tmp_path, exact=False)[0]
    found = first[:6] + run(FAMILIES["gpt"], offloaded, 3, 6, tmp_path, exact=False)[0]
    assert_follows_in_fp32([found], reference(6, *FAMILIES["gpt"], exact=False), 6)


@pytest.mark.parametrize(
    "name", ["ddp", "tp2", "tp2-sequence", "pp2", "cp2", "cp2-ring", "tp2-pp2", "dp2-tp2-zero3"]
)
def test_dropout_is_repeated_and_continued_bit_for_bit(name: str, tmp_path: Path) -> None:
    overrides = (*FAMILIES["gpt"], "model.dropout=0.3", "attention.dropout=0.2")
    unbroken = run(overrides, LAYOUTS[name], 0, 4, exact=False)[0]
    assert unbroken[0] != run(FAMILIES["gpt"], LAYOUTS[name], 0, 1, exact=False)[0][0], (
        "dropout is not on"
    )
    first = run(overrides, LAYOUTS[name], 0, 2, None, tmp_path, exact=False)[0]
    assert first[:4] + run(overrides, LAYOUTS[name], 2, 4, tmp_path, exact=False)[0] == unbroken


MOVES = [
    ("reference", "tp2"),
    ("tp2", "reference"),
    ("dp4", "tp2"),
    ("pp2", "zero3"),
    ("zero3", "tp2-pp2"),
    ("tp2-pp2", "dp2-pp2"),
    ("dp2-tp2-zero3", "pp2-dualpipev"),
    ("pp2-dualpipev", "pp2"),
    ("tp2-sequence", "ddp"),
    ("ddp", "cp2"),
    ("zero2", "dp4"),
    ("dp4", "reference"),
]


@pytest.mark.parametrize(("written", "read"), MOVES)
@pytest.mark.parametrize("family", ["gpt", "t5"])
def test_a_checkpoint_opens_under_another_layout(
    family: str, written: str, read: str, tmp_path: Path
) -> None:
    overrides = (*FAMILIES[family], *more_blocks(family, written), *more_blocks(family, read))
    first = run(overrides, PLACES[written], 0, 3, None, tmp_path)[0]
    assert_follows(
        [first[:6] + run(overrides, PLACES[read], 3, 6, tmp_path)[0]], reference(6, *overrides)
    )


@pytest.mark.parametrize("name", ["tp2", "pp2", "pp2-dualpipev", "dp2-tp2-zero3", "tp2-pp2"])
def test_the_same_layout_continues_bit_for_bit(name: str, tmp_path: Path) -> None:
    unbroken = run(FAMILIES["t5"], LAYOUTS[name], 0, 4, exact=False)[0]
    first = run(FAMILIES["t5"], LAYOUTS[name], 0, 2, None, tmp_path, exact=False)[0]
    assert (
        first[:4] + run(FAMILIES["t5"], LAYOUTS[name], 2, 4, tmp_path, exact=False)[0] == unbroken
    )


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "degrees",
    [{"dp": 2, "tp": 2, "pp": 2}, {"dp": 2, "tp": 2, "cp": 2, "zero_stage": 3}, {"pp": 4, "tp": 2}],
)
def test_three_dimensions_on_eight_ranks(family: str, degrees: dict[str, int]) -> None:
    overrides, place = (*FAMILIES[family], "model.n_layers=4"), layout(micro=1, **degrees)
    curves = run_ranks(train_exactly, place.world_size, overrides, place, 0, N_STEPS, timeout_s=280)
    assert_follows(curves, reference(N_STEPS, *overrides))
