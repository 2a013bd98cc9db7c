"""The model and what it learns: groups `model` and `objective`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from scaling.config.family import FAMILIES, Traits, described, traits_of
from scaling.config.plugins import added, known
from scaling.config.section import Count, Name, Section, at_most

ADDED_LATER = (
    "parametrization",
    "base_width",
    "base_layers",
    "factorised",
    "first_norm",
    "embedding_norm",
    "scale_embedding",
    "n_segments",
    "residual",
    "qk_norm",
    "attention_bias",
    "head_bias",
    "logit_cap",
    "expert_weights",
)
"""Fields that are no part of a run's identity at their defaults: runs without them have these."""
OBJECTIVES = ("causal_lm", "masked_lm", "span_corruption", "prefix_lm", "seq2seq")


_NormEps = Annotated[float, at_most(1, "beside which no variance would count")]
_Cap = Annotated[float, at_most(1e6, "which no logit reaches; null: no cap")]
_InitStd = Annotated[float, at_most(100, "and weights near 1 saturate every layer")]
_BalanceLoss = Annotated[float, at_most(1e6, "beside which the loss itself would not count")]
_MeanSpan = Annotated[float, at_most(2**30, "the longest sequence")]


class ModelConfig(Section):
    """Shape of the Transformer (names of Vaswani et al. 2017 and Brown et al. 2020, table 2.1)."""

    name: Name = Field(description="name of the shape, family_size")
    family: Annotated[str, AfterValidator(known("families", tuple(FAMILIES)))] = Field(
        description=described()
    )
    n_layers: int = Field(
        gt=0,
        le=10_000,
        description="blocks; of the encoder and of the decoder, where there are both",
    )
    d_model: int = Field(gt=0, le=2**20, description="width of the residual stream")
    n_heads: int = Field(gt=0, le=2**20, description="query heads")
    n_kv_heads: int | None = Field(
        None, gt=0, description="key and value heads; null: as many as n_heads"
    )
    d_head: int | None = Field(
        None, gt=0, le=2**20, description="width of a head; null: d_model / n_heads"
    )
    d_ff: int | None = Field(
        None,
        gt=0,
        le=2**24,
        description="width of the feed-forward layer; null: 4 d_model, or 8/3 d_model (rounded up "
        "to 64) where gated",
    )
    vocab_size: Count | None = Field(
        None, gt=0, lt=2**31, description="rows of the embedding; null: the tokenizer's"
    )
    d_embedding: int | None = Field(
        None,
        gt=0,
        le=2**20,
        description="width of the token embedding, then projected; null: d_model",
    )
    factorised: Literal["tokens", "input"] = Field(
        "tokens",
        description="what d_embedding is the width of; input: positions, segments and norm too "
        "(Lan et al. 2020)",
    )
    activation: Literal["gelu", "gelu_exact", "relu", "silu", "swiglu", "geglu", "geglu_exact"] = (
        Field(
            description="feed-forward non-linearity; gelu and geglu in the tanh form; "
            "swiglu, geglu and geglu_exact are gated"
        )
    )
    norm: Literal["layernorm", "rmsnorm", "rmsnorm_one"] = Field(
        description="normalisation; rmsnorm_one multiplies by 1 + weight"
    )
    norm_position: Literal["pre", "post", "sandwich"] = Field(
        "pre",
        description="before each sublayer, or after its sum with the residual; "
        "sandwich: before it and after it",
    )
    first_norm: bool = Field(
        True, description="a norm before the first attention; false: that of the embedding serves"
    )
    embedding_norm: bool | None = Field(
        None, description="a norm of the embedded input; null: where the family has one"
    )
    scale_embedding: bool | None = Field(
        None,
        description="embeddings are multiplied by sqrt(d_model); "
        "null: in a transformer, and with sinusoids",
    )
    n_segments: int | None = Field(
        None, ge=0, le=1024, description="segments that a masked model tells apart; null: 2"
    )
    residual: Literal["serial", "parallel", "parallel_one_norm"] = Field(
        "serial",
        description="attention, then the feed-forward layer; "
        "parallel: both of the same input, each behind a norm of its own or behind one",
    )
    qk_norm: Literal["none", "head"] = Field(
        "none", description="a norm of the queries and keys of each head"
    )
    norm_eps: _NormEps = Field(1e-5, gt=0, description="added to the variance")
    bias: bool = Field(description="biases in linear layers and layernorm")
    attention_bias: Literal["none", "qkv", "all"] | None = Field(
        None, description="biases in attention; qkv: not in its output; null: as bias"
    )
    head_bias: bool = Field(False, description="a bias for each logit; a masked head has one")
    logit_cap: _Cap | None = Field(
        None, gt=0, description="logits x become cap tanh(x / cap) (Gemma Team 2024)"
    )
    tie_embeddings: bool = Field(
        description="one matrix for the input embedding and the output head"
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="dropout after the embedding and after every sublayer"
    )
    init_std: _InitStd = Field(0.02, gt=0, description="standard deviation of the initial weights")
    parametrization: Literal["standard", "mup", "completep"] = Field(
        "standard",
        description="how weights and rates follow the size; mup: width; "
        "completep: depth too (scaling.model)",
    )
    base_width: int | None = Field(
        None, gt=0, description="mup, completep: d_model at which all is as in the standard one"
    )
    base_layers: int | None = Field(
        None, gt=0, description="completep: n_layers at which all is as in the standard one"
    )
    share_layers: bool = Field(
        False, description="all blocks of a stack are one and the same (Lan et al. 2020)"
    )
    n_experts: int = Field(
        1,
        gt=0,
        le=2**16,
        description="feed-forward layers of a block, of which each token takes some; 1: no mixture",
    )
    experts_per_token: int = Field(1, gt=0, description="experts that each token takes")
    expert_weights: Literal["softmax", "sum_to_one"] | None = Field(
        None,
        description="of a token's experts: their probabilities, or these over their sum; "
        "null: the latter where there are several",
    )
    balance_loss: _BalanceLoss = Field(
        0.01,
        ge=0,
        description="weight of the load-balancing loss of experts (Fedus et al. 2021)",
    )

    @model_validator(mode="after")
    def _heads(self) -> Self:
        if self.d_head is None and self.d_model % self.n_heads:
            raise ValueError(
                f"n_heads={self.n_heads} does not divide d_model={self.d_model}; "
                "change one, or give d_head"
            )
        if self.n_heads % self.kv_heads:
            raise ValueError(f"n_kv_heads={self.kv_heads} does not divide n_heads={self.n_heads}")
        self._check_parametrization()
        if self.experts_per_token > self.n_experts:
            raise ValueError(
                f"experts_per_token={self.experts_per_token}, "
                f"but there are only n_experts={self.n_experts}"
            )
        return self

    def _check_parametrization(self) -> None:
        """Raises ValueError for a base that is missing or not read, and for models that the rules
        do not cover."""
        kind = self.parametrization
        for name, readers in (
            ("base_width", ("mup", "completep")),
            ("base_layers", ("completep",)),
        ):
            if (getattr(self, name) is not None) != (kind in readers):
                what = "needs" if kind in readers else "has no use for"
                raise ValueError(f"model.parametrization={kind} {what} model.{name}")
        uncovered = (
            not self.traits.mup
            or self.norm_position != "pre"
            or self.n_experts > 1
            or self.d_embedding is not None
            or self.scale_embedding
            or self.residual != "serial"
        )
        if kind != "standard" and uncovered:
            raise ValueError(
                f"model.parametrization={kind} is for family=gpt with norm_position=pre, "
                "one expert, no d_embedding, no scale_embedding and residual=serial"
            )

    @property
    def kv_heads(self) -> int:
        return self.n_kv_heads or self.n_heads

    @property
    def head_width(self) -> int:
        return self.d_head or self.d_model // self.n_heads

    @property
    def ff_width(self) -> int:
        if self.d_ff is not None:
            return self.d_ff
        # Shazeer 2020 (arXiv:2002.05202): two thirds of 4 d_model keep the parameter count with a
        # third matrix.
        return -(-8 * self.d_model // 3 // 64) * 64 if self.gated else 4 * self.d_model

    @property
    def gated(self) -> bool:
        """Whether the feed-forward layer has a third matrix, whose output multiplies the
        second's."""
        return self.activation in ("swiglu", "geglu", "geglu_exact")

    @property
    def embedding_width(self) -> int:
        return self.d_embedding or self.d_model

    @property
    def input_width(self) -> int:
        """Width of what positions and segments are added to."""
        return self.embedding_width if self.factorised == "input" else self.d_model

    @property
    def qkv_biased(self) -> bool:
        return self.bias if self.attention_bias is None else self.attention_bias != "none"

    @property
    def output_biased(self) -> bool:
        """Whether attention's output has a bias."""
        return self.bias if self.attention_bias is None else self.attention_bias == "all"

    @property
    def input_normed(self) -> bool:
        """Whether the embedded input goes through a norm."""
        return self.traits.masked_head if self.embedding_norm is None else self.embedding_norm

    @property
    def segments(self) -> int:
        """Embeddings of segments."""
        default = 2 if self.traits.masked_head else 0
        return default if self.n_segments is None else self.n_segments

    @property
    def sum_to_one(self) -> bool:
        """Whether the weights of a token's experts are divided by their sum."""
        if self.expert_weights is None:
            return self.experts_per_token > 1
        return self.expert_weights == "sum_to_one"

    @property
    def traits(self) -> Traits:
        """What the model's family is."""
        return traits_of(self.family)


class ObjectiveConfig(Section):
    kind: Annotated[str, AfterValidator(known("objectives", OBJECTIVES))] = Field(
        description="causal_lm: the next token; masked_lm: hidden tokens; "
        "span_corruption: hidden spans, in a decoder; prefix_lm: the rest of a text, in a decoder; "
        "seq2seq: the target of a text pair"
    )
    mask_fraction: float = Field(
        0.15, gt=0, lt=1, description="masked_lm, span_corruption: part of the tokens to predict"
    )
    whole_words: bool = Field(
        False, description="masked_lm: hide all pieces of a word or none (tokenizer=wordpiece)"
    )
    sentence_order: bool = Field(
        False, description="masked_lm: also tell whether two segments stand in their order"
    )
    mean_span: _MeanSpan = Field(
        3.0, ge=1, description="span_corruption: tokens of a hidden span, on average"
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="part of the target spread over the vocabulary, in training only",
    )


def needs_special_tokens(objective: str) -> bool:
    """Whether an objective needs tokens for padding, class, separator and mask."""
    return (
        objective != "causal_lm"
        if objective in OBJECTIVES
        else bool(added("objectives")[objective].needs_special_tokens)
    )
