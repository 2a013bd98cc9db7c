"""Parameters, and training FLOPs per token, of a model. No torch: tests compare with the sizes of
the real module."""

from __future__ import annotations

from dataclasses import dataclass

from scaling.config.plugins import added
from scaling.config.run_config import ModelConfig, RunConfig
from scaling.planner.cost.attention import attended_by_layer, relative_params
from scaling.planner.cost.lengths import lengths


@dataclass(frozen=True)
class ModelCounts:
    """The sizes with which a run is published.

    n_params                 every trained number; a tied head and a shared block are counted once
    n_params_embedding       embeddings of tokens (with their projection), segments and positions,
                             and an untied head
    n_params_non_embedding   the rest: N of Kaplan et al. 2020 (arXiv:2001.08361), whose norms and
                             biases are counted too
    flops_per_token          forward and backward, without recomputation
    """

    n_params: int
    n_params_non_embedding: int
    n_params_embedding: int
    flops_per_token: int


def block_matmul_params(model: ModelConfig) -> int:
    """Entries of the matrices of one block: q, k, v, o, and the feed-forward layer or its experts
    and their router."""
    experts = model.n_experts * feed_forward_matmul_params(model)
    return attention_matmul_params(model) + experts + _router_params(model)


def attention_matmul_params(model: ModelConfig) -> int:
    """Parameters of q, k, v and o of one attention; cross-attention has as many again."""
    return model.d_model * 2 * (_q_width(model) + _kv_width(model))


def feed_forward_matmul_params(model: ModelConfig) -> int:
    """Parameters of one feed-forward layer, or of one expert."""
    return (3 if model.gated else 2) * model.d_model * model.ff_width


def block_params(model: ModelConfig, *, cross: bool = False) -> int:
    """All of one block: its matrices, their biases and two norms; with cross-attention that and its
    norm too."""
    block = (
        block_matmul_params(model)
        + _attention_biases(model)
        + model.n_experts * _feed_forward_biases(model)
    )
    n_norms = 1 if model.residual == "parallel_one_norm" else 2
    if model.qk_norm == "head":
        block += 2 * _norm_params(model, model.head_width)
    if cross:
        n_norms += 1
        block += attention_matmul_params(model) + _attention_biases(model)
    n_norms *= 2 if model.norm_position == "sandwich" else 1
    return block + n_norms * _norm_params(model, model.d_model)


def count(config: RunConfig) -> ModelCounts:
    """Count the parameters and FLOPs of `config.model` at the vocabulary and sequence length of the
    run."""
    embedding, non_embedding = _embedding_params(config), _non_embedding_params(config)
    return ModelCounts(
        n_params=embedding + non_embedding,
        n_params_non_embedding=non_embedding,
        n_params_embedding=embedding,
        flops_per_token=round(flops_per_sequence(config) / config.train.seq_len),
    )


def flops_per_sequence(config: RunConfig) -> int:
    """Forward and backward of one sequence: two FLOPs a multiply-add, a backward of twice the
    forward (Chowdhery et al. 2022, arXiv:2204.02311, appendix B).

    Every position of a stack meets the matrices of its blocks (of experts, those it takes),
    attention every pair of positions that it looks at, not halved for causality. So for GPT with
    full attention, a token: 6 (n_layers block_matmul_params + V d_model) + 12 n_layers seq_len
    n_heads d_head. A decoder beside an encoder meets the queries and outputs of cross-attention at
    its own positions, keys and values at the encoder's. Heads are counted where they are computed,
    tied or not: BERT's at the scored positions. Padding counts as positions do. A token is one of
    the train.seq_len by which a run counts: of T5 a position of the encoder, of text pairs one of
    source or target.
    """
    model, shape = config.model, lengths(config)
    n_in, n_out = shape.inputs, shape.targets
    active = attention_matmul_params(model) + _router_params(model)
    active += model.experts_per_token * feed_forward_matmul_params(model)
    multiplied = model.n_layers * active * (n_in + n_out)
    pairs = n_in * sum(attended_by_layer(config, n_in, causal=model.traits.causal))
    pairs += n_out * sum(attended_by_layer(config, n_out, causal=True))
    # cross-attention is full attention, whatever the kind of the others
    pairs += model.n_layers * n_out * n_in
    if n_out:
        multiplied += (
            model.n_layers * 2 * model.d_model * (_q_width(model) * n_out + _kv_width(model) * n_in)
        )
    multiplied += _head_matmul_params(config) * head_positions(config)
    multiplied += _projection_matmul_params(model) * (n_in + n_out)
    return 6 * multiplied + 12 * pairs * _q_width(model)


def block_flops(config: RunConfig) -> list[float]:
    """FLOPs of a training sequence in each block, forward and backward, an encoder's blocks before
    its decoder's."""
    model, shape = config.model, lengths(config)
    n_in, n_out, width = shape.inputs, shape.targets, _q_width(model)
    active = attention_matmul_params(model) + _router_params(model)
    active += model.experts_per_token * feed_forward_matmul_params(model)
    blocks = [
        6.0 * active * n_in + 12 * n_in * seen * width
        for seen in attended_by_layer(config, n_in, causal=model.traits.causal)
    ]
    if n_out:
        cross = 12 * model.d_model * (width * n_out + _kv_width(model) * n_in)
        cross += 12 * n_out * n_in * width
        blocks += [
            6.0 * active * n_out + 12 * n_out * seen * width + cross
            for seen in attended_by_layer(config, n_out, causal=True)
        ]
    return blocks


def head_flops(config: RunConfig) -> float:
    """FLOPs of a training sequence between the last block and the logits."""
    return 6 * _head_matmul_params(config) * head_positions(config)


def head_positions(config: RunConfig) -> int:
    """Positions of a sequence for which the head is computed."""
    shape = lengths(config)
    return shape.scored if config.model.traits.masked_head else shape.targets or shape.inputs


def _embedding_params(config: RunConfig) -> int:
    model = config.model
    tokens = config.vocab_size * model.embedding_width + _projection_params(model)
    # An untied head reads d_model; BERT's, behind its dense layer, the width of the embedding.
    head_width = model.embedding_width if model.traits.masked_head else model.d_model
    head = 0 if model.tie_embeddings else config.vocab_size * head_width
    segments = model.segments * model.input_width
    return tokens + head + segments + n_stacks(model) * _position_params(config)


def _position_params(config: RunConfig) -> int:
    """Parameters of one stack's positions."""
    if plugin := added("positions").get(config.position.kind):
        return int(plugin.params(config))
    if config.position.kind == "learned":
        rows = (config.position.first_row or 0) + config.train.seq_len
        return rows * config.model.input_width
    return (config.position.n_buckets or 0) * config.model.n_heads  # relative_bias


def _non_embedding_params(config: RunConfig) -> int:
    model = config.model
    n_blocks = 1 if model.share_layers else model.n_layers
    blocks = n_blocks * (block_params(model) + relative_params(config, causal=model.traits.causal))
    if model.traits.encoder_and_decoder:
        blocks += n_blocks * (
            block_params(model, cross=True) + relative_params(config, causal=True)
        )
    n_norms = n_stacks(model) * int(model.norm_position != "post")
    if not model.first_norm:
        n_norms -= n_stacks(model)
    if model.input_normed and not model.traits.masked_head:
        n_norms += n_stacks(model)
    other = n_norms * _norm_params(model, model.d_model)
    other += config.vocab_size if model.head_bias else 0
    return blocks + other + (_masked_head_params(config) if model.traits.masked_head else 0)


def _masked_head_params(config: RunConfig) -> int:
    """BERT's embedding norm; dense layer, norm and bias of the head; and with sentence order pooler
    and classifier."""
    model, bias = config.model, int(config.model.bias)
    head = (
        model.embedding_width * (model.d_model + bias)
        + _norm_params(model, model.embedding_width)
        + config.vocab_size
    )
    order = (model.d_model + 2) * (model.d_model + bias) if config.objective.sentence_order else 0
    return _norm_params(model, model.input_width) + head + order


def _head_matmul_params(config: RunConfig) -> int:
    """Entries of the matrices between the last block and the logits."""
    model = config.model
    if model.traits.masked_head:
        return (config.vocab_size + model.d_model) * model.embedding_width
    if model.tie_embeddings:
        return config.vocab_size * model.embedding_width + _projection_matmul_params(model)
    return config.vocab_size * model.d_model


def n_stacks(model: ModelConfig) -> int:
    """Stacks of blocks: two where there are an encoder and a decoder."""
    return 2 if model.traits.encoder_and_decoder else 1


def _q_width(model: ModelConfig) -> int:
    return model.n_heads * model.head_width


def _kv_width(model: ModelConfig) -> int:
    return model.kv_heads * model.head_width


def _projection_matmul_params(model: ModelConfig) -> int:
    return model.embedding_width * model.d_model if model.embedding_width != model.d_model else 0


def _projection_params(model: ModelConfig) -> int:
    """The projection of the whole input has a bias, that of tokens none."""
    bias = model.d_model if model.input_width != model.d_model else 0
    return _projection_matmul_params(model) + bias


def _router_params(model: ModelConfig) -> int:
    return model.d_model * model.n_experts if model.n_experts > 1 else 0


def _attention_biases(model: ModelConfig) -> int:
    inputs = _q_width(model) + 2 * _kv_width(model) if model.qkv_biased else 0
    return inputs + (model.d_model if model.output_biased else 0)


def _feed_forward_biases(model: ModelConfig) -> int:
    return (2 if model.gated else 1) * model.ff_width + model.d_model if model.bias else 0


def _norm_params(model: ModelConfig, width: int) -> int:
    return width * (2 if model.norm == "layernorm" and model.bias else 1)
