"""The validated configuration: one frozen model per group in conf/, and the run's identity.

Composition (`compose.py`) ends in a plain dict; `RunConfig` checks every value of it once, and nobody edits it
downstream. What changes the mathematics is *semantic* and hashed to the run id; what only changes how the
mathematics is executed (cluster, layout, logger, checkpoint interval) is not.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ModelWrapValidatorHandler, model_validator

from scaling.attention_config import AttentionConfig, PositionConfig, check_combination
from scaling.section import Section
from scaling.units import parse_count, parse_share


def conf_dir() -> Path:
    """The groups: conf/ beside the package in a checkout, inside the package in a wheel."""
    package = Path(__file__).resolve().parent
    checkout = package.parent / "conf"
    return checkout if (checkout / "config.yaml").is_file() else package / "conf"


Count = Annotated[int, BeforeValidator(parse_count)]


def _check_share(value: Any) -> Any:
    parse_share(value, 10**9)
    return value


Share = Annotated[int | float | str, BeforeValidator(_check_share)]
"""A count of tokens, or a percentage of the run's tokens such as "2%"."""


class ModelConfig(Section):
    """Shape of the Transformer (names of Vaswani et al. 2017 and Brown et al. 2020, table 2.1)."""

    name: str = Field(description="name of the shape, family_size")
    family: Literal["gpt", "bert", "t5", "transformer"] = Field(
        description="gpt: causal decoder; bert: bidirectional encoder; t5, transformer: encoder and decoder"
    )
    n_layers: int = Field(gt=0, description="blocks; of the encoder and of the decoder, where there are both")
    d_model: int = Field(gt=0, description="width of the residual stream")
    n_heads: int = Field(gt=0, description="query heads")
    n_kv_heads: int | None = Field(None, gt=0, description="key and value heads; null: as many as n_heads")
    d_head: int | None = Field(None, gt=0, description="width of a head; null: d_model / n_heads")
    d_ff: int | None = Field(
        None, gt=0, description="width of the feed-forward layer; null: 4 d_model, or 8/3 d_model (rounded up to 64) where gated"
    )
    vocab_size: Count | None = Field(None, gt=0, description="rows of the embedding; null: the tokenizer's")
    d_embedding: int | None = Field(None, gt=0, description="width of the token embedding, then projected; null: d_model")
    activation: Literal["gelu", "gelu_exact", "relu", "swiglu", "geglu"] = Field(
        description="feed-forward non-linearity; gelu and geglu in the tanh form; swiglu and geglu are gated"
    )
    norm: Literal["layernorm", "rmsnorm"] = Field(description="normalisation")
    norm_position: Literal["pre", "post"] = Field("pre", description="before each sublayer, or after its sum with the residual")
    norm_eps: float = Field(1e-5, gt=0, description="added to the variance")
    bias: bool = Field(description="biases in linear layers and layernorm")
    tie_embeddings: bool = Field(description="one matrix for the input embedding and the output head")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout after the embedding and after every sublayer")
    init_std: float = Field(0.02, gt=0, description="standard deviation of the initial weights")
    share_layers: bool = Field(False, description="all blocks of a stack are one and the same (Lan et al. 2020)")
    n_experts: int = Field(1, gt=0, description="feed-forward layers of a block, of which each token takes some; 1: no mixture")
    experts_per_token: int = Field(1, gt=0, description="experts that each token takes")
    balance_loss: float = Field(0.01, ge=0, description="weight of the load-balancing loss of experts (Fedus et al. 2021)")

    @model_validator(mode="after")
    def _heads(self) -> Self:
        if self.d_head is None and self.d_model % self.n_heads:
            raise ValueError(f"n_heads={self.n_heads} does not divide d_model={self.d_model}; change one, or give d_head")
        if self.n_heads % self.kv_heads:
            raise ValueError(f"n_kv_heads={self.kv_heads} does not divide n_heads={self.n_heads}")
        if self.experts_per_token > self.n_experts:
            raise ValueError(f"experts_per_token={self.experts_per_token}, but there are only n_experts={self.n_experts}")
        return self

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
        # Shazeer 2020 (arXiv:2002.05202): two thirds of 4 d_model keep the parameter count with a third matrix.
        return -(-8 * self.d_model // 3 // 64) * 64 if self.gated else 4 * self.d_model

    @property
    def gated(self) -> bool:
        """Whether the feed-forward layer has a third matrix, whose output multiplies the second's."""
        return self.activation in ("swiglu", "geglu")

    @property
    def embedding_width(self) -> int:
        return self.d_embedding or self.d_model

    @property
    def has_encoder_and_decoder(self) -> bool:
        return self.family in ("t5", "transformer")


class ObjectiveConfig(Section):
    kind: Literal["causal_lm", "masked_lm", "span_corruption", "prefix_lm", "seq2seq"] = Field(
        description="causal_lm: the next token; masked_lm: hidden tokens; span_corruption: hidden spans, in a decoder; "
        "prefix_lm: the rest of a text, in a decoder; seq2seq: the target of a text pair"
    )
    mask_fraction: float = Field(0.15, gt=0, lt=1, description="masked_lm, span_corruption: part of the tokens to predict")
    whole_words: bool = Field(False, description="masked_lm: hide all pieces of a word or none (tokenizer=wordpiece)")
    sentence_order: bool = Field(False, description="masked_lm: also tell whether two segments stand in their order")
    mean_span: float = Field(3.0, ge=1, description="span_corruption: tokens of a hidden span, on average")
    separate_documents: bool = Field(
        False, description="causal_lm, masked_lm: positions attend to their own document only, where several share a sequence"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="part of the target spread over the vocabulary, in training only")


class DataConfig(Section):
    """Where text comes from, and where its shards are kept."""

    kind: Literal["python_stdlib", "text_files", "text_pairs", "shards"] = Field(
        description="python_stdlib: sources of this interpreter's standard library; text_files: a glob; text_pairs: lines of "
        "source TAB target; shards: prepared before"
    )
    path: str | None = Field(
        None, description="text_files, text_pairs: a glob of UTF-8 files; shards: a directory or URL with index.json"
    )
    target_path: str | None = Field(
        None,
        description="text_pairs: a file whose lines are the targets of those of data.path; null: they follow a TAB there",
    )
    cache_dir: str = Field(description="where prepared corpora are kept; prepared once, shared by all runs")
    val_fraction: float = Field(0.05, gt=0, lt=0.5, description="part of the documents held out, by hash")
    shard_tokens: Count = Field(1_000_000, gt=0, description="tokens in a shard, about")
    on_bad_shard: Literal["fail", "skip"] = Field(
        "fail", description="a missing or damaged shard: fail, or skip it and record that"
    )

    @model_validator(mode="after")
    def _path(self) -> Self:
        if self.kind != "python_stdlib" and not self.path:
            raise ValueError(f"data={self.kind} needs data.path")
        if self.target_path and self.kind != "text_pairs":
            raise ValueError(f"data.target_path is set, but only data=text_pairs reads it, and this is data={self.kind}")
        return self


class TokenizerConfig(Section):
    kind: Literal["bpe", "byte", "wordpiece", "unigram"] = Field(
        description="bpe, wordpiece, unigram: pieces of words, learnt from the corpus over bytes; byte: one token a byte"
    )
    vocab_size: Count = Field(gt=0, description="entries of the vocabulary, special tokens included")
    special_tokens: Literal["eot", "all"] = Field(
        "eot", description="eot: end-of-text alone; all: padding, class, separator and mask too"
    )
    n_sentinels: int = Field(0, ge=0, description="tokens that stand for hidden spans (objective=span_corruption)")

    @property
    def n_special(self) -> int:
        """Special tokens: end-of-text, with special_tokens=all four more, and the sentinels."""
        return (5 if self.special_tokens == "all" else 1) + self.n_sentinels

    @model_validator(mode="after")
    def _size(self) -> Self:
        alphabet = 512 if self.kind == "wordpiece" else 256
        least = alphabet + self.n_special
        if self.vocab_size < least:
            what = "256 bytes, at the start and inside of a word," if self.kind == "wordpiece" else "256 bytes"
            raise ValueError(
                f"vocab_size={self.vocab_size} is too small: {what} and {self.n_special} special token(s) need {least}"
            )
        if self.kind == "byte" and self.vocab_size != least:
            raise ValueError(f"vocab_size={self.vocab_size}, but tokenizer=byte has exactly {least} entries")
        return self


class OptimConfig(Section):
    kind: Literal["adamw"] = Field(description="adamw: Loshchilov and Hutter 2019")
    lr: float = Field(gt=0, description="peak learning rate")
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the first moment")
    beta2: float = Field(0.95, ge=0, lt=1, description="decay of the second moment")
    eps: float = Field(1e-8, gt=0, description="added to the root of the second moment")
    weight_decay: float = Field(0.1, ge=0, description="on matrices; never on biases, norms and embeddings")
    grad_clip: float = Field(1.0, ge=0, description="largest global gradient norm; 0: no clipping")


class ScheduleConfig(Section):
    kind: Literal["cosine", "wsd", "constant", "inverse_sqrt"] = Field(
        description="cosine: to the end of the run; wsd: warm-up, stable, decay; constant: after warm-up; "
        "inverse_sqrt: falling as 1 / sqrt(tokens) after warm-up"
    )
    warmup_tokens: Share = Field(description="linear warm-up, as tokens or as a share of the run (2%)")
    decay_tokens: Share = Field("20%", description="wsd: length of the final linear decay")
    min_lr_ratio: float = Field(0.1, ge=0, le=1, description="last learning rate over the peak")

    @model_validator(mode="after")
    def _warmup(self) -> Self:
        if self.kind == "inverse_sqrt" and not parse_share(self.warmup_tokens, 10**9):
            raise ValueError("schedule=inverse_sqrt starts to fall from schedule.warmup_tokens, so that cannot be 0")
        return self


class PrecisionConfig(Section):
    kind: Literal["auto", "fp32", "bf16"] = Field(
        description="auto: bf16 on GPUs, fp32 on CPUs; bf16 keeps fp32 master weights and optimiser states"
    )


class LayoutConfig(Section):
    """How a step is executed; none of it changes the loss curve."""

    kind: Literal["auto", "manual"] = Field(description="auto: the planner's choice; manual: the values below")
    engine: Literal["auto", "reference", "deepspeed"] = Field(
        "auto", description="reference: plain PyTorch, one device; deepspeed: ZeRO; auto: reference on one device"
    )
    dp: int | None = Field(None, gt=0, description="data-parallel ranks; null: as many devices as divide the global batch")
    zero_stage: Literal[1, 2, 3] | None = Field(
        None, description="ZeRO shards 1: optimiser states; 2: gradients too; 3: weights too"
    )
    micro_batch_size: int | None = Field(None, gt=0, description="sequences per rank per forward")
    activation_checkpointing: Literal["none", "full"] | None = Field(None, description="full: recompute every block in backward")

    @model_validator(mode="after")
    def _auto(self) -> Self:
        given = [k for k in ("dp", "zero_stage", "micro_batch_size", "activation_checkpointing") if getattr(self, k) is not None]
        if self.kind == "auto" and given:
            raise ValueError(f"layout.{given[0]} is set, but layout=auto leaves it to the planner; use layout=manual")
        return self


class DeviceConfig(Section):
    """One accelerator, or one CPU worker."""

    kind: Literal["cpu", "gpu"] = Field(description="gpu: NCCL, bf16 unless precision says otherwise; cpu: gloo, fp32")
    name: str = Field(description="as the vendor names it")
    memory_gb: float | None = Field(gt=0, description="GB (10^9) of one device; null: asked of this machine")
    peak_tflops_bf16: float | None = Field(None, gt=0, description="dense peak; null: unknown, and MFU is not reported")
    peak_tflops_fp32: float | None = Field(None, gt=0, description="dense peak in fp32 (TF32 where there is one)")
    memory_gb_per_s: float | None = Field(None, gt=0, description="memory bandwidth")
    power_w: float | None = Field(None, gt=0, description="board power limit")


class ClusterConfig(Section):
    """What the planner and the launcher must know of the machines."""

    name: str = Field(description="as plans and errors call it")
    kind: Literal["embedded", "existing"] = Field(
        description="embedded: Ray is started here; existing: joined at cluster.address"
    )
    address: str | None = Field(None, description="existing: address of the Ray head, or auto")
    n_nodes: int = Field(1, gt=0, description="machines")
    devices_per_node: int | None = Field(None, gt=0, description="devices in each; null: asked of this machine")
    device: DeviceConfig
    intra_node_gb_per_s: float | None = Field(None, gt=0, description="per device and direction, within a node")
    inter_node_gb_per_s: float | None = Field(None, gt=0, description="per device and direction, between nodes")
    usd_per_device_hour: float | None = Field(None, ge=0, description="price; null: unknown")
    threads_per_worker: int = Field(1, gt=0, description="CPU threads of a worker")
    preemptible: bool = Field(False, description="machines may be taken back at any time")
    max_failures: int = Field(2, ge=0, description="worker failures after which the run is given up")
    timeout_s: float = Field(600.0, gt=0, description="longest wait for a rank in a collective operation")


class CheckpointConfig(Section):
    every_steps: int | None = Field(gt=0, description="steps between checkpoints; null: only at the end and when stopped")
    keep_last: int = Field(2, gt=0, description="newest checkpoints that are kept")
    keep_every_steps: int | None = Field(None, gt=0, description="checkpoints at multiples of this are kept for ever")


class LoggerConfig(Section):
    kind: Literal["none", "wandb", "tensorboard"] = Field(description="a view of metrics.jsonl, which is always written")
    project: str = Field("scaling", description="wandb: project")
    entity: str | None = Field(None, description="wandb: team or user")
    group: str | None = Field(None, description="wandb: group of runs")


class TrainConfig(Section):
    n_tokens: Count | None = Field(gt=0, description="token budget; null: 20 per parameter (Hoffmann et al. 2022)")
    global_batch_size: Count = Field(gt=0, description="sequences per optimiser step")
    seq_len: Count = Field(gt=1, description="tokens per sequence")
    seed: int = Field(0, ge=0, lt=2**63, description="of the initial weights, the data order and dropout")
    log_every: int = Field(10, gt=0, description="steps between records in metrics.jsonl")
    eval_every: int | None = Field(None, gt=0, description="steps between evaluations; null: only at the end")
    eval_sequences: int = Field(512, gt=0, description="held-out sequences of an evaluation, at most")
    compile: bool = Field(False, description="torch.compile each block")
    sample_prompt: str = Field("", description="prompt of the text generated at the end")
    sample_tokens: int = Field(0, ge=0, description="tokens generated at the end; 0: none")


class RunSection(Section):
    root: str = Field(description="directory of run directories")
    name: str | None = Field(None, description="first part of the run directory's name; null: the model's")
    resume: Literal["auto", "never"] = Field("auto", description="auto: continue what is there; never: refuse to")


OBJECTIVES_OF: dict[str, tuple[str, ...]] = {
    "gpt": ("causal_lm",),
    "bert": ("masked_lm",),
    "t5": ("span_corruption", "prefix_lm", "seq2seq"),
    "transformer": ("seq2seq", "span_corruption", "prefix_lm"),
}
"""Objectives that a family can learn, its own first."""

WHAT_IT_IS = {
    "gpt": "sees earlier tokens only",
    "bert": "sees the tokens that it would have to predict",
    "t5": "has an encoder that needs an input of its own",
    "transformer": "has an encoder that needs an input of its own",
}


class ProgramSection(Section):
    debug: bool = Field(False, description="show tracebacks")


class RunConfig(Section):
    """A whole configuration, as composed from conf/ and the command line."""

    model: ModelConfig
    attention: AttentionConfig
    position: PositionConfig
    objective: ObjectiveConfig
    data: DataConfig
    tokenizer: TokenizerConfig
    optim: OptimConfig
    schedule: ScheduleConfig
    precision: PrecisionConfig
    layout: LayoutConfig
    cluster: ClusterConfig
    checkpoint: CheckpointConfig
    logger: LoggerConfig
    train: TrainConfig
    run: RunSection
    scaling: ProgramSection
    dry_run: bool = Field(False, description="print the plan and stop")

    @model_validator(mode="wrap")
    @classmethod
    def _kv_heads(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """With attention=gqa or mqa, the model's key/value heads are those of the attention."""
        config = handler(values)
        model = config.model
        n_kv_heads = config.attention.kv_heads_for(model.n_heads, model.n_kv_heads)
        return config.model_copy(update={"model": model.model_copy(update={"n_kv_heads": n_kv_heads})})

    @model_validator(mode="after")
    def _cross(self) -> Self:
        self._check_objective()
        vocab, entries = self.vocab_size, self.tokenizer.vocab_size
        if vocab < entries:
            raise ValueError(f"model.vocab_size={vocab} is smaller than tokenizer.vocab_size={entries}; leave it null")
        check_combination(
            self.attention, self.position, d_model=self.model.d_model, d_head=self.model.head_width,
            has_cross_attention=self.model.family in ("t5", "transformer"),
        )  # fmt: skip
        return self

    def _check_objective(self) -> None:
        """What is learnt must suit the model, the tokenizer and the data. Raises ValueError that says what would."""
        kind, family, tokenizer = self.objective.kind, self.model.family, self.tokenizer
        fitting = OBJECTIVES_OF[family]
        if kind not in fitting:
            raise ValueError(
                f"objective={kind} does not fit model.family={family}, which {WHAT_IT_IS[family]}; use {' or '.join(fitting)}"
            )
        if (kind == "seq2seq") != (self.data.kind == "text_pairs") and self.data.kind != "shards":
            wanted = "needs data=text_pairs data.path=..." if kind == "seq2seq" else "has no use for data=text_pairs"
            raise ValueError(f"objective={kind} {wanted}, and this is data={self.data.kind}")
        if kind != "causal_lm" and tokenizer.special_tokens != "all":
            raise ValueError(f"objective={kind} needs padding, class, separator and mask: set tokenizer.special_tokens=all")
        if self.objective.whole_words and tokenizer.kind != "wordpiece":
            raise ValueError(f"objective.whole_words=true needs tokenizer=wordpiece; those of {tokenizer.kind} do not tell words")

    @property
    def vocab_size(self) -> int:
        return self.model.vocab_size or self.tokenizer.vocab_size

    @property
    def name(self) -> str:
        return self.run.name or self.model.name

    @property
    def dtype(self) -> Literal["fp32", "bf16"]:
        """Of the matrix products: `precision.kind` with auto resolved for the cluster's device."""
        if self.precision.kind == "auto":
            return "bf16" if self.cluster.device.kind == "gpu" else "fp32"
        return self.precision.kind

    def semantic(self) -> dict[str, Any]:
        """All that the mathematics of the run depends on, as a plain dict with null values resolved."""
        sections = ("model", "attention", "position", "objective", "data", "tokenizer", "optim", "schedule")
        out: dict[str, Any] = {name: getattr(self, name).model_dump() for name in sections}
        for name in ("attention", "position"):  # a key that a kind does not read is null
            out[name] = {key: value for key, value in out[name].items() if value is not None}
        for key in ("cache_dir", "on_bad_shard"):
            del out["data"][key]
        model = self.model
        out["model"] |= {
            "n_kv_heads": model.kv_heads, "d_head": model.head_width, "d_ff": model.ff_width, "vocab_size": self.vocab_size
        }  # fmt: skip
        del out["model"]["name"]
        out["precision"] = self.dtype
        out["train"] = {k: getattr(self.train, k) for k in ("n_tokens", "global_batch_size", "seq_len", "seed")}
        return out

    @property
    def semantic_hash(self) -> str:
        """SHA-256 of the semantic configuration in canonical JSON, as 64 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.semantic(), sort_keys=True).encode()).hexdigest()

    @property
    def run_id(self) -> str:
        """First eight digits of the semantic hash, the last part of the run directory's name."""
        return self.semantic_hash[:8]
