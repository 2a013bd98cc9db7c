"""Every kind of attention against naive references, its causality, its documents and its cache."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scaling.batch import PADDING
from scaling.model.attention import CROSS_ATTENTIONS, base, linear, relative
from scaling.model.attention import tiles as pieces
from scaling.model.position import Context
from tests.support.attention_reference import KINDS, build, naive
from tests.support.configs import composed
from tests.support.exact import ATOL, assert_same, rounding_bound

T, D = 29, 48
"""Not a multiple of any window, stride, block, piece or chunk that is used here."""

DOUBLE = pytest.mark.usefixtures("double")
CAUSAL = pytest.mark.parametrize("causal", [True, False], ids=["causal", "both_sides"])
BIASES = ["none", "alibi", "relative_bias"]


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that several pieces and chunks are met within a short sequence."""
    for module in (pieces, relative, linear):
        monkeypatch.setattr(module, "PIECE", 8)
    monkeypatch.setattr(linear, "LINEAR_CHUNK", 8)


def documents(first: tuple[int, ...] = (3, 11, 6, 9), second: tuple[int, ...] = (21, 8)) -> Tensor:
    """Two rows of documents of these lengths, the last one of the second row padding."""
    rows = [
        torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        for lengths in (first, second)
    ]
    rows[1][rows[1] == len(second) - 1] = PADDING
    return torch.stack(rows)


def check(
    module: base.Attention, context: Context, parameters: list[Tensor] | None = None, T: int = T
) -> None:
    """Values and gradients (of x, the module's parameters and these) equal the naive ones."""
    generator = torch.Generator().manual_seed(1)
    x, upstream = (torch.randn(2, T, D, generator=generator) for _ in range(2))
    inputs = [x.requires_grad_(), *module.parameters(), *(parameters or [])]
    ours, expected = module(x, context), naive(module, x, context)
    assert_same(ours, expected)
    grads = torch.autograd.grad(ours, inputs, upstream)
    for got, want in zip(grads, torch.autograd.grad(expected, inputs, upstream), strict=True):
        assert_same(got, want)


@CAUSAL
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_kv_heads", [6, 2, 1])
@DOUBLE
def test_equals_the_definition(kind: str, causal: bool, n_kv_heads: int) -> None:
    module, _ = build(kind, causal=causal, n_kv_heads=n_kv_heads)
    check(module, Context())


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_definition_in_fp32(kind: str) -> None:
    module, _ = build(kind)
    x = torch.randn(2, T, D)
    # Products of D terms (queries, scores) and of T (values), then of D (outputs), which reach 40.
    expected = naive(module, x, Context())
    bound = rounding_bound(n_terms=3 * D + T, scale=float(expected.detach().abs().max()))
    torch.testing.assert_close(module(x, Context()), expected, atol=bound, rtol=0)


@CAUSAL
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("position", BIASES)
@DOUBLE
def test_equals_the_definition_with_biases_documents_and_padding(
    kind: str, position: str, causal: bool
) -> None:
    if kind == "linear" and position == "relative_bias":
        pytest.skip("refused at composition")
    module, at = build(kind, causal=causal, position=position)
    check(module, Context(bias=at.bias), list(at.parameters()))
    check(module, Context(bias=at.bias, documents_BT=documents()), list(at.parameters()))


@CAUSAL
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "relative"])
@DOUBLE
def test_equals_the_definition_with_rotation(kind: str, causal: bool) -> None:
    module, at = build(kind, causal=causal, position="rope")
    rotation = at.rotation(0, T, torch.device("cpu"))
    check(module, Context(rotation))
    check(module, Context(rotation, documents_BT=documents()))


@CAUSAL
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 2, 4, 5, 6, 7, 8, 9, 12, 13, 16, 24])
@DOUBLE
def test_equals_the_definition_at_every_length(kind: str, causal: bool, length: int) -> None:
    module, _ = build(kind, causal=causal)
    check(module, Context(), T=length)


def changed_where(x: Tensor, module: base.Attention, context: Context, change: slice) -> Tensor:
    """How much each position's output changes, when these inputs do."""
    other = x.clone()
    other[:, change] = torch.randn_like(other[:, change])
    with torch.no_grad():
        return (module(other, context) - module(x, context)).abs().amax(dim=-1)


@pytest.mark.parametrize("kind", KINDS)
@DOUBLE
def test_no_output_depends_on_the_future(kind: str) -> None:
    module, _ = build(kind)
    x = torch.randn(2, T, D)
    for t in (1, 8, 16, 28):
        change = changed_where(x, module, Context(), slice(t, None))
        assert change[:, :t].max() < ATOL
        assert change[:, t:].min() > 1e-3


@CAUSAL
@pytest.mark.parametrize("kind", KINDS)
@DOUBLE
def test_documents_do_not_see_one_another(kind: str, causal: bool) -> None:
    module, _ = build(kind, causal=causal)
    x = torch.randn(2, T, D)
    context = Context(documents_BT=documents())
    change = changed_where(x, module, context, slice(3, 14))
    assert change[0, :3].max() < ATOL
    assert change[0, 14:].max() < ATOL
    assert change[0, 3:14].min() > 1e-3
    padding = changed_where(x, module, context, slice(21, None))
    assert padding[1, :21].max() < ATOL
    assert module(x, context).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("position", ["none", "rope", "alibi", "relative_bias"])
@pytest.mark.parametrize("lengths", [[1] * T, [7, *[1] * 22], [20, 9], [T]], ids=str)
@DOUBLE
def test_the_cache_gives_what_the_whole_does(kind: str, position: str, lengths: list[int]) -> None:
    if (kind, position) in {("linear", "relative_bias"), ("relative", "rope")}:
        pytest.skip("refused at composition")
    module, at = build(kind, position=position)
    module.eval()
    x = torch.randn(2, T, D)
    cache, parts, start = module.new_cache(T), [], 0
    with torch.no_grad():
        for length in lengths:
            part = x[:, start : start + length]
            parts.append(module(part, at.context(start, part), cache))
            start += length
            assert cache.length == start
        whole = module(x, at.context(0, x))
    assert_same(torch.cat(parts, dim=1), whole)


@pytest.mark.parametrize("kind", KINDS)
@DOUBLE
def test_beams_are_rows_of_the_cache(kind: str) -> None:
    module, _ = build(kind)
    module.eval()
    x, index = torch.randn(3, T, D), torch.tensor([2, 0, 0])
    cache = module.new_cache(T)
    with torch.no_grad():
        module(x[:, :20], Context(), cache)
        cache.select(index)
        parts = [module(x[index, t : t + 1], Context(), cache) for t in range(20, T)]
        whole = module(x[index], Context())
    assert_same(torch.cat(parts, dim=1), whole[:, 20:])


def test_small_states_stay_small() -> None:
    sizes = {}
    for kind in ("local", "linear", "hierarchical"):
        module, _ = build(kind)
        cache = module.new_cache(1000)
        with torch.no_grad():
            module(torch.randn(1, 1000, D), Context(), cache)
        held = vars(cache).values()
        tensors = [
            t
            for value in held
            for t in (value if isinstance(value, tuple) else [value])
            if isinstance(t, Tensor)
        ]
        sizes[kind] = sum(t.untyped_storage().nbytes() // t.element_size() for t in tensors)
    # Two key/value heads of eight: five positions; eight by nine sums; 250 blocks of four, of which
    # the last two whole.
    assert sizes == {
        "local": 2 * 2 * 8 * 5,
        "linear": 2 * 8 * 9,
        "hierarchical": 2 * 2 * 8 * (248 + 8),
    }


def test_what_a_cache_cannot_do_is_refused() -> None:
    module, _ = build("local")
    with pytest.raises(ValueError, match="without padding"):
        module(torch.randn(2, T, D), Context(documents_BT=documents()), module.new_cache(T))
    module, _ = build("local", causal=False)
    with pytest.raises(ValueError, match="no past to keep"):
        module(torch.randn(2, T, D), Context(), module.new_cache(T))


@CAUSAL
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "linear"])
@DOUBLE
def test_dropout_drops_weights_in_training_alone(kind: str, causal: bool) -> None:
    module, _ = build(kind, "attention.dropout=0.5", causal=causal)
    x = torch.randn(2, T, D)
    assert not torch.equal(module(x, Context()), module(x, Context()))
    # The mean over many draws is the output without dropout.
    with torch.no_grad():
        mean = torch.stack([module(x, Context()) for _ in range(400)]).mean(0)
        module.eval()
        exact = module(x, Context())
    assert_same(exact, naive(module, x, Context()))
    assert (mean - exact).norm() < 0.15 * exact.norm()


@pytest.mark.parametrize("kind", CROSS_ATTENTIONS)
@pytest.mark.parametrize("packed", [False, True])
@DOUBLE
def test_cross_attention_equals_the_definition(kind: str, packed: bool) -> None:
    torch.manual_seed(0)
    config = composed(
        "model.d_model=48", "model.n_heads=6", "model.n_kv_heads=null", f"attention={kind}"
    )
    module = CROSS_ATTENTIONS[kind](config)
    x, source = torch.randn(2, T, D, requires_grad=True), torch.randn(2, 19, D, requires_grad=True)
    own = documents() if packed else torch.zeros(2, T, dtype=torch.long)
    theirs = (
        torch.tensor([[0] * 5 + [1] * 4 + [2] * 3 + [3] * 7, [0] * 12 + [PADDING] * 7])
        if packed
        else own[:, :19]
    )
    q, k, v = (
        f(t).view(2, t.shape[1], -1, 8)
        for f, t in ((module.q, x), (module.k, source), (module.v, source))
    )
    k, v = (t.repeat_interleave(6 // t.shape[2], dim=2) for t in (k, v))
    seen = (own[:, :, None] == theirs[:, None, :])[:, None]
    if kind == "linear":
        weights = (
            torch.einsum("bthk,bshk->bhts", *(torch.nn.functional.elu(t) + 1 for t in (q, k)))
            * seen
        )
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-6)
    else:
        weights = (
            (torch.einsum("bthk,bshk->bhts", q, k) / 8**0.5)
            .masked_fill(~seen, float("-inf"))
            .softmax(-1)
        )
    expected = module.o(torch.einsum("bhts,bshk->bthk", weights, v).reshape(2, T, D))
    ours = module(x, module.source(source), *((own, theirs) if packed else ()))
    assert_same(ours, expected)
    upstream = torch.randn_like(ours)
    grads = [
        torch.autograd.grad(y, [x, source, *module.parameters()], upstream)
        for y in (ours, expected)
    ]
    for got, want in zip(*grads, strict=True):
        assert_same(got, want)


@DOUBLE
def test_a_target_without_a_source_gets_zeros_not_nan() -> None:
    module = CROSS_ATTENTIONS["full"](
        composed("model.d_model=48", "model.n_heads=6", "model.bias=true")
    )
    x, source = torch.randn(1, 4, D), torch.randn(1, 5, D)
    ids = torch.tensor([[0, 0, 1, 1]])
    y = module(x, module.source(source), ids, torch.zeros(1, 5, dtype=torch.long))
    assert y.isfinite().all()
    assert_same(y[0, 2:], module.o.bias.expand(2, D))


@DOUBLE
def test_hierarchical_is_full_where_the_words_of_a_block_are_alike() -> None:
    module, _ = build("hierarchical")
    full, _ = build("full")
    full.load_state_dict(module.state_dict())
    x = torch.randn(2, 7, D).repeat_interleave(4, dim=1)
    assert_same(module(x, Context()), full(x, Context()))


@pytest.mark.parametrize("kind", KINDS)
@DOUBLE
def test_scale_is_that_of_the_scores(kind: str) -> None:
    module, _ = build(kind)
    module.scale = 0.7
    x = torch.randn(2, T, D)
    with torch.no_grad():
        other, _ = build(kind)
        factor = 0.7 if kind == "linear" else 0.7 * 8**0.5
        other.q.weight.mul_(factor)
        if other.q.bias is not None:
            other.q.bias.mul_(factor)
        assert_same(module(x, Context()), other(x, Context()))


@CAUSAL
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["autocast", "cast"])
def test_bf16_stays_near_fp32(kind: str, causal: bool, how: str) -> None:
    position = "none" if kind == "linear" else "alibi"
    module, at = build(kind, causal=causal, position=position)
    x = torch.randn(2, T, D)
    context = Context(bias=at.bias, documents_BT=documents())
    exact = module(x, context)
    if how == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            low = module(x, context)
    else:
        low = module.bfloat16()(x.bfloat16(), context)
    assert low.dtype == torch.bfloat16
    assert (low.float() - exact).norm() < 0.05 * exact.norm()
