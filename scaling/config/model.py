"""The model and what it learns: groups `model` and `objective`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from scaling.config.family import FAMILIES, Traits, described, traits_of
from scaling.config.plugins import added, known
from scaling.config.section import Count, Name, Section, at_most

OBJECTIVES = ("causal_lm", "masked_lm", "span_corruption", "prefix_lm", "seq2seq")


_NormEps = Annotated[float, at_most(1, "beside which no variance would count")]
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
        description="width of the feed-forward layer; null: 4 d_model, or 8/3 d_model (rounded up to 64) where gated",
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
    activation: Literal["gelu", "gelu_exact", "relu", "swiglu", "geglu"] = Field(
        description="feed-forward non-linearity; gelu and geglu in the tanh form; swiglu and geglu are gated"
    )
    norm: Literal["layernorm", "rmsnorm"] = Field(description="normalisation")
    norm_position: Literal["pre", "post"] = Field(
        "pre", description="before each sublayer, or after its sum with the residual"
    )
    norm_eps: _NormEps = Field(1e-5, gt=0, description="added to the variance")
    bias: bool = Field(description="biases in linear layers and layernorm")
    tie_embeddings: bool = Field(
        description="one matrix for the input embedding and the output head"
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="dropout after the embedding and after every sublayer"
    )
    init_std: _InitStd = Field(0.02, gt=0, description="standard deviation of the initial weights")
    parametrization: Literal["standard", "mup", "completep"] = Field(
        "standard",
        description="how weights and rates follow the size; mup: width; completep: depth too (scaling.model)",
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
    balance_loss: _BalanceLoss = Field(
        0.01,
        ge=0,
        description="weight of the load-balancing loss of experts (Fedus et al. 2021)",
    )

    @model_validator(mode="after")
    def _heads(self) -> Self:
        if self.d_head is None and self.d_model % self.n_heads:
            raise ValueError(
                f"n_heads={self.n_heads} does not divide d_model={self.d_model}; change one, or give d_head"
            )
        if self.n_heads % self.kv_heads:
            raise ValueError(f"n_kv_heads={self.kv_heads} does not divide n_heads={self.n_heads}")
        self._check_parametrization()
        if self.experts_per_token > self.n_experts:
            raise ValueError(
                f"experts_per_token={self.experts_per_token}, but there are only n_experts={self.n_experts}"
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
        )
        if kind != "standard" and uncovered:
            raise ValueError(
                f"model.parametrization={kind} is for family=gpt with norm_position=pre, one expert and no d_embedding"
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
        return self.activation in ("swiglu", "geglu")

    @property
    def embedding_width(self) -> int:
        return self.d_embedding or self.d_model

    @property
    def traits(self) -> Traits:
        """What the model's family is."""
        return traits_of(self.family)


class ObjectiveConfig(Section):
    kind: Annotated[str, AfterValidator(known("objectives", OBJECTIVES))] = Field(
        description="causal_lm: the next token; masked_lm: hidden tokens; span_corruption: hidden spans, in a decoder; "
        "prefix_lm: the rest of a text, in a decoder; seq2seq: the target of a text pair"
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
