"""What the planner counts of each attention: parameters of the real modules, FLOPs by hand, bytes
that autograd keeps."""

from __future__ import annotations

import pytest
import torch

from scaling.config.run_config import RunConfig
from scaling.errors import PlanError
from scaling.model import build_model
from scaling.model.attention import ATTENTIONS
from scaling.model.position import POSITIONS
from scaling.planner.cost import attention as plan
from scaling.planner.cost.counts import block_flops, count
from scaling.planner.cost.lengths import lengths
from scaling.planner.run_plan import make_plan
from tests.support.attention_reference import sees
from tests.support.configs import composed

CAUSAL = pytest.mark.parametrize("causal", [True, False], ids=["causal", "both_sides"])
WORKS = [
    (a, p)
    for a in ATTENTIONS
    for p in POSITIONS
    if (a, p) not in {("linear", "relative_bias"), ("relative", "rope")}
]


@pytest.mark.parametrize(("kind", "position"), WORKS, ids=["-".join(pair) for pair in WORKS])
def test_parameters_are_those_of_the_module(kind: str, position: str) -> None:
    config = composed(
        f"attention={kind}", f"position={position}", "model.bias=true", "model.n_layers=3"
    )
    module = build_model(config, device="meta")
    assert sum(parameter.numel() for parameter in module.parameters()) == count(config).n_params


@CAUSAL
@pytest.mark.parametrize("values", ["true", "false"])
def test_vectors_of_distances(values: str, causal: bool) -> None:
    config = composed(
        "attention=relative", f"attention.relative_values={values}", "attention.max_distance=5"
    )
    tables = [
        p.numel()
        for name, p in ATTENTIONS["relative"](config, causal=causal).named_parameters()
        if "relative" in name
    ]
    assert sum(tables) == plan.relative_params(config, causal=causal)


def test_flops_by_hand() -> None:
    """Twelve a layer, pair, head and d_head; nano has 4 layers of 128 and sees 256 positions."""
    full = count(composed()).flops_per_token - 12 * 4 * 128 * 256
    seen = {
        "local": 128,
        "strided": 16 + 256 // 16,
        "hierarchical": 128 + 256 // 64,
        "linear": 32,
        "relative": 256 + 17,
    }
    for kind, positions in seen.items():
        overrides = ("model.n_kv_heads=4", f"attention={kind}")
        assert count(composed(*overrides)).flops_per_token == full + 12 * 4 * 128 * positions, kind


def test_cross_attention_is_full_attention_in_every_kind() -> None:
    """The model builds no other; kinds differ by what self-attention sees."""
    for kind in ("linear", "local"):
        found = []
        for words in (("model=t5_tiny",), ("model=t5_tiny", "position=none", f"attention={kind}")):
            config = composed(*words)
            shape, model = lengths(config), config.model
            width = 12 * model.n_heads * model.head_width
            own = plan.attended(config, shape.targets, causal=True)
            found.append(block_flops(config)[-1] - width * shape.targets * own)
        assert found[0] == found[1], kind


@CAUSAL
@pytest.mark.parametrize("kind", ["local", "strided"])
def test_positions_in_the_middle_see_as_many_as_is_counted(kind: str, causal: bool) -> None:
    """Causal ones to within the columns that a position has behind it."""
    n = 240
    config = composed(
        f"attention={kind}",
        f"train.seq_len={n}",
        *(["attention.window=16"] if kind == "local" else []),
    )
    module = ATTENTIONS[kind](config, causal=causal)
    t = n - 1 if causal else n // 2
    seen = sum(sees(kind, module, t, s) for s in range(n))
    assert plan.attended(config, n, causal=causal) == pytest.approx(
        seen, abs=1 if kind == "strided" else 0
    )


def kept_bytes(config: RunConfig, causal: bool, B: int) -> float:
    """Bytes a position that autograd keeps between projections, less what plain full attention
    keeps."""
    T, model = config.train.seq_len, config.model
    module, at = (
        ATTENTIONS[config.attention.kind](config, causal=causal),
        POSITIONS[config.position.kind](config, causal=causal),
    )
    q, k, v = (
        torch.randn(B, T, n, model.head_width, requires_grad=True).transpose(1, 2)
        for n in (model.n_heads, model.kv_heads, model.kv_heads)
    )
    known = {
        t.untyped_storage().data_ptr() for t in (q, k, v, *module.parameters(), *at.parameters())
    }
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in known:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = module.attend(q, k, v, at.context(0, torch.empty(B, T, model.d_model)))
        y.transpose(1, 2).reshape(B * T, -1).square()  # the projection keeps its input
    full = 4 * (model.n_heads * model.head_width + model.n_heads)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / (B * T) - full


@CAUSAL
@pytest.mark.parametrize("n_kv_heads", [4, 1])
@pytest.mark.parametrize("length", [400, 1024])
@pytest.mark.parametrize(
    ("kind", "position"),
    [
        *((k, "none") for k in ATTENTIONS if k not in ("gqa", "mqa")),
        ("full", "alibi"),
        ("local", "alibi"),
        ("local", "relative_bias"),
        ("linear", "rope"),
    ],
)
def test_memory_is_what_autograd_keeps(
    kind: str, position: str, length: int, n_kv_heads: int, causal: bool
) -> None:
    """The estimate is within 12 % of what is kept of one sequence, with masks of its own, or of
    two, whose rows are copied, whichever is more."""
    overrides = ("model.d_model=256", f"model.n_kv_heads={n_kv_heads}", f"train.seq_len={length}")
    config = composed(f"attention={kind}", f"position={position}", *overrides)
    model = config.model
    base = 4 * (2 * model.n_heads + 2 * model.kv_heads) * model.head_width
    predicted = base + plan.extra_bytes_per_token(config, length, 4, causal=causal)
    measured = base + max(kept_bytes(config, causal, B) for B in (1, 2))
    assert predicted == pytest.approx(measured, rel=0.3 if position == "relative_bias" else 0.12)


@CAUSAL
@pytest.mark.parametrize(
    ("kind", "position", "length"),
    [
        ("full", "none", 400),
        ("full", "alibi", 400),
        ("full", "none", 1024),
        ("local", "none", 400),
        ("local", "none", 100),
    ],
)
def test_memory_of_capped_scores(kind: str, position: str, length: int, causal: bool) -> None:
    """No fused kernel caps scores, so they are kept; of long sequences they are made again."""
    config = composed(
        *("model.d_model=256", f"train.seq_len={length}", "attention.score_cap=20"),
        *(f"attention={kind}", f"position={position}"),
    )
    model = config.model
    base = 4 * (2 * model.n_heads + 2 * model.kv_heads) * model.head_width
    predicted = base + plan.extra_bytes_per_token(config, length, 4, causal=causal)
    measured = base + max(kept_bytes(config, causal, B) for B in (1, 2))
    assert predicted == pytest.approx(measured, rel=0.12)


def test_a_pattern_costs_what_its_layers_do() -> None:
    """Three of 4 layers see a window of 32 of the 256 positions."""
    mixed = composed("attention.pattern=[local,local,local,full]", "attention.window=32")
    full = count(composed()).flops_per_token
    assert full - count(mixed).flops_per_token == 12 * 3 * 128 * (256 - 32)
    assert plan.attended_by_layer(mixed, 256, causal=True) == [32, 32, 32, 256]


def test_a_kind_without_a_cost_is_refused() -> None:
    config = composed()
    unknown = config.model_copy(
        update={"attention": config.attention.model_copy(update={"kind": "toy"})}
    )
    for cost in (
        lambda: plan.attended(unknown, 64, causal=True),
        lambda: plan.extra_bytes_per_token(unknown, 64, 4, causal=True),
        lambda: plan.relative_params(unknown, causal=True),
        lambda: make_plan(unknown),
    ):
        with pytest.raises(PlanError, match="attention=toy has no cost in the planner"):
            cost()
    assert set(plan.KINDS) == set(ATTENTIONS)
