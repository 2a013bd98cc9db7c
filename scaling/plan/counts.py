"""Parameters, and training FLOPs per token, of a model. No torch: tests compare with the sizes of the real module."""

from __future__ import annotations

from dataclasses import dataclass

from scaling.config import ModelConfig, RunConfig


@dataclass(frozen=True)
class ModelCounts:
    """The sizes with which a run is published.

    n_params                 every trained number; a tied head is counted once
    n_params_embedding       token embedding, learned positions and an untied head
    n_params_non_embedding   the rest: N of Kaplan et al. 2020 (arXiv:2001.08361), whose norms and biases are counted too
    flops_per_token          forward and backward, without recomputation
    """

    n_params: int
    n_params_non_embedding: int
    n_params_embedding: int
    flops_per_token: int


def block_matmul_params(model: ModelConfig) -> int:
    """Entries of the matrices of one block: q, k, v, o and the feed-forward layer."""
    q_width, kv_width = model.n_heads * model.head_width, model.kv_heads * model.head_width
    n_ff_matrices = 3 if model.activation == "swiglu" else 2
    return model.d_model * (2 * q_width + 2 * kv_width + n_ff_matrices * model.ff_width)


def block_params(model: ModelConfig) -> int:
    """All of one block: its matrices, their biases and two norms."""
    return block_matmul_params(model) + _block_biases(model) + 2 * _norm_params(model)


def count(config: RunConfig) -> ModelCounts:
    """Count the parameters and FLOPs of `config.model` at the vocabulary and sequence length of the run.

    flops_per_token = 6 (n_layers block_matmul_params + V d_model) + 12 n_layers seq_len n_heads d_head: two FLOPs a
    multiply-add, a backward of twice the forward, the head's matrix whether tied or not, and attention to all seq_len
    positions, not halved for causality (Chowdhery et al. 2022, arXiv:2204.02311, appendix B).
    """
    model, seq_len = config.model, config.train.seq_len
    head = config.vocab_size * model.d_model
    positions = seq_len * model.d_model if config.position.kind == "learned" else 0
    embedding = (1 if model.tie_embeddings else 2) * head + positions
    non_embedding = model.n_layers * block_params(model) + _norm_params(model)
    attention = 12 * model.n_layers * seq_len * model.n_heads * model.head_width
    return ModelCounts(
        n_params=embedding + non_embedding,
        n_params_non_embedding=non_embedding,
        n_params_embedding=embedding,
        flops_per_token=6 * (model.n_layers * block_matmul_params(model) + head) + attention,
    )


def _block_biases(model: ModelConfig) -> int:
    if not model.bias:
        return 0
    attention = model.n_heads * model.head_width + 2 * model.kv_heads * model.head_width + model.d_model
    n_wide = 2 if model.activation == "swiglu" else 1
    return attention + n_wide * model.ff_width + model.d_model


def _norm_params(model: ModelConfig) -> int:
    return model.d_model * (2 if model.norm == "layernorm" and model.bias else 1)
