"""What each kind of attention adds to a model's parameters, FLOPs and memory."""

from __future__ import annotations

from scaling.config.plugins import added
from scaling.config.run_config import RunConfig
from scaling.config.tile_sizes import CHUNKS_PER_WINDOW, LINEAR_CHUNK, PIECE
from scaling.errors import PlanError

WHOLE = ("full", "gqa", "mqa")
"""Kinds in which every position attends to all others; they differ in key/value heads alone."""

KINDS = (*WHOLE, "linear", "local", "relative", "strided", "hierarchical")
"""Kinds of which this module knows the cost."""


def known_kind(config: RunConfig) -> str:
    """The kind of attention. Raises PlanError for one without a cost: charged as full attention,
    it would get a plan that does not hold."""
    kind = config.attention.kind
    if kind not in KINDS:
        raise PlanError(
            f"attention={kind} has no cost in the planner",
            f"attention.kind={kind}",
            "Add its FLOPs and bytes to scaling/planner/cost/attention.py; it has "
            f"{', '.join(KINDS)}.",
        )
    return kind


def relative_params(config: RunConfig, *, causal: bool) -> int:
    """Entries of the vectors of distances of one layer (attention=relative), which its heads
    share."""
    attention = config.attention
    if plugin := added("attentions").get(attention.kind):
        return int(plugin.params(config, causal=causal))
    if known_kind(config) != "relative":
        return 0
    return (
        (2 if attention.relative_values else 1)
        * _relative_vectors(config, causal)
        * config.model.head_width
    )


def attended_by_layer(config: RunConfig, length: int, *, causal: bool) -> list[int]:
    """`attended` of each layer of a stack, whose kinds attention.pattern may mix."""
    n_layers, pattern = config.model.n_layers, config.attention.pattern
    if pattern is None:
        return [attended(config, length, causal=causal)] * n_layers
    of_kind = {
        kind: attended(config, length, causal=causal, kind=kind)
        for kind in {config.attention.kind_at(layer) for layer in range(len(pattern))}
    }
    return [of_kind[config.attention.kind_at(layer)] for layer in range(n_layers)]


def attended(config: RunConfig, length: int, *, causal: bool, kind: str | None = None) -> int:
    """Positions that each of `length` positions multiplies its query and a weight with, not halved
    for causality, in a layer of this kind (null: the configuration's).

    linear: a query and a key meet a d_head x d_head state, as costly as d_head positions. relative:
    its vectors are multiplied besides, on the side of the values too where they have some.
    """
    attention, both = config.attention, 1 if causal else 2
    if plugin := added("attentions").get(attention.kind):
        return int(plugin.attended(config, length, causal=causal))
    kind = kind or known_kind(config)
    if kind == "linear":
        return config.model.head_width
    if kind == "relative":
        vectors = _relative_vectors(config, causal)
        return length + (vectors if attention.relative_values else vectors // 2)
    if kind == "local":
        assert attention.window is not None
        return min(length, both * (attention.window - 1) + 1)
    if kind == "strided":
        stride = attention.stride_for(config.train.seq_len)
        return min(length, both * (stride - 1) + 1 + length // stride)
    if kind == "hierarchical":
        assert attention.block is not None
        return min(length, (1 + both) * attention.block + length // attention.block)
    return length


def mean_extra_bytes_per_token(
    config: RunConfig, length: int, width: int, *, causal: bool
) -> float:
    """`extra_bytes_per_token` of a layer, on average over those that attention.pattern mixes."""
    if config.attention.pattern is None:
        return extra_bytes_per_token(config, length, width, causal=causal)
    kinds = [config.attention.kind_at(layer) for layer in range(config.model.n_layers)]
    return sum(
        kinds.count(kind) * extra_bytes_per_token(config, length, width, causal=causal, kind=kind)
        for kind in sorted(set(kinds))
    ) / len(kinds)


def extra_bytes_per_token(
    config: RunConfig, length: int, width: int, *, causal: bool, kind: str | None = None
) -> int:
    """What self-attention keeps for backward beyond full attention without a bias: queries, keys,
    values, outputs and an fp32 log-sum a head. `width`: bytes of a value.

    Summed over the tensors that autograd holds, which a test weighs. Masks count as of a single
    sequence; more share them.
    """
    model, attention = config.model, config.attention
    kv_width, q_width = model.kv_heads * model.head_width, model.n_heads * model.head_width
    if plugin := added("attentions").get(attention.kind):
        return int(plugin.extra_bytes_per_token(config, length, width, causal=causal))
    kind, sides = kind or known_kind(config), 2 if causal else 3
    if attention.score_cap is not None:
        return _capped_bytes(config, length, width, causal, kind)
    if kind == "local":
        return _local_bytes(config, length, width, causal)
    if kind == "linear":
        pairs = LINEAR_CHUNK * model.n_heads if causal else 0
        sums = kv_width * (model.head_width + 1) // LINEAR_CHUNK if causal else 0
        turned = q_width + kv_width + pairs if config.position.kind == "rope" else 0
        return 4 * ((3 if causal else 2) * (q_width + kv_width) + sums + pairs + turned)
    if kind == "relative" and length <= PIECE:
        return (
            length * (4 * model.n_heads + (width if width < 4 else 0) * model.n_heads + 8)
            + 2 * width * q_width
        )
    if kind == "strided" and length > (stride := attention.stride_for(config.train.seq_len)):
        far = -(-length // stride)
        return _formed_bytes(
            config, sides * stride, far, width, 2 * q_width + 2 * (sides + 1) * kv_width, far
        )
    if kind == "hierarchical" and attention.block is not None and length > 2 * attention.block:
        far = -(-length // attention.block) * (1 if causal else 2)
        return _formed_bytes(
            config, sides * attention.block, far, width, 2 * q_width + 2 * sides * kv_width, 0
        )
    if kind == "relative":
        return width * q_width  # scaled queries; the rest is made again in backward
    if length > PIECE:
        return 0
    return _mask_bytes(config, length, width)


def _capped_bytes(config: RunConfig, length: int, width: int, causal: bool, kind: str) -> int:
    """A score keeps its tanh, its weight and, where a mask hides some, that again: no fused kernel
    caps scores. Queries are scaled, keys and values repeated for their heads, masks kept."""
    model, window = config.model, config.attention.window
    by_head = config.position.kind in ("alibi", "relative_bias")
    in_window = kind == "local" and window is not None and length > window
    masked = causal or by_head or in_window or not config.data.attend_across_documents
    each = 8 + 4 * masked + (width if width < 4 else 0)
    each += 1 + width if config.attention.dropout else 0
    if in_window and window is not None:
        chunk, copies = _chunks(window, causal)
        scores = model.n_heads * copies * chunk * each
        q_width = model.n_heads * model.head_width
        return scores + width * q_width + _local_bytes(config, length, width, causal)
    if length > PIECE:
        return 0  # made again in backward
    masks = length * (model.n_heads if by_head else 1) if masked else 0
    return model.n_heads * (length * each + 3 * width * model.head_width) + masks


def _chunks(window: int, causal: bool) -> tuple[int, int]:
    """Positions of a chunk of local attention, and chunks that its queries see."""
    chunk = -(-window // CHUNKS_PER_WINDOW)
    back = -(-(window - 1) // chunk)
    return chunk, back + 1 + (0 if causal else back)


def _local_bytes(config: RunConfig, length: int, width: int, causal: bool) -> int:
    """Copies of keys and values for every chunk that sees them, of queries and of outputs."""
    model, window = config.model, config.attention.window
    assert window is not None
    if length <= window:
        return _mask_bytes(config, length, width) if length <= PIECE else 0
    chunk = -(-window // CHUNKS_PER_WINDOW)
    back = -(-(window - 1) // chunk)
    ahead, learnt = 0 if causal else back, config.position.kind == "relative_bias"
    copies = back + 1 + ahead
    # the chunks near the ends need no copies
    together = max(0, length // chunk - back - ahead) * chunk / length
    # A learnt bias falls back on a kernel that repeats keys and values for every head and keeps the
    # weights.
    kv_heads = model.n_heads if learnt else model.kv_heads
    values = (
        model.n_heads * model.head_width * (1 + together)
        + together * copies * 2 * kv_heads * model.head_width
    )
    weights = 4 * model.n_heads * copies * chunk if learnt else 0
    masks = (
        copies / 2 * model.n_heads * copies * chunk**2 / length
        if config.position.kind == "alibi"
        else 0
    )
    return round(width * (values + masks) + weights)


def _formed_bytes(
    config: RunConfig, near: int, far: int, width: int, values: int, copied: int
) -> int:
    """Weights of near and far keys, in fp32 and again in a narrower width, and dropped out; of
    `copied` once more."""
    n_weights = near + far
    each = 4 + (width if width < 4 else 0) + (1 + width if config.attention.dropout else 0)
    return width * values + config.model.n_heads * (each * n_weights + width * copied)


def _mask_bytes(config: RunConfig, length: int, width: int) -> int:
    """Bytes of masks for up to PIECE positions: a bias of every head and pair, with a learnt one
    the weights too; or pairs of one document."""
    if config.position.kind == "alibi":
        return width * config.model.n_heads * length
    if config.position.kind == "relative_bias":
        return 4 * config.model.n_heads * length
    return 0 if config.data.attend_across_documents else 4 * length


def _relative_vectors(config: RunConfig, causal: bool) -> int:
    max_distance = config.attention.max_distance
    assert max_distance is not None
    return max_distance + 1 if causal else 2 * max_distance + 1
