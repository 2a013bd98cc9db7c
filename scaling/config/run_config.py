"""The validated configuration: one frozen model per group in conf/, and the run's identity.

Composition (`composition/compose.py`) ends in a plain dict; `RunConfig` checks every value of it
once, and nobody edits it downstream. What changes the mathematics is *semantic* and hashed to the
run id; what only changes how the mathematics is executed (cluster, layout, logger, checkpoint
interval) is not.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    ModelWrapValidatorHandler,
    field_validator,
    model_validator,
)

from scaling import markup
from scaling.config.attention import AttentionConfig, PositionConfig, check_combination
from scaling.config.cluster import ClusterConfig, DeviceConfig, LayoutConfig, PlanConfig
from scaling.config.data import HOW_DATA_COMES, ComponentConfig, DataConfig, TokenizerConfig
from scaling.config.model import ADDED_LATER, ModelConfig, ObjectiveConfig, needs_special_tokens
from scaling.config.parts import check_parts
from scaling.config.plugins import conf_dirs
from scaling.config.section import LONGEST_S, Count, Name, Section, Share, at_most
from scaling.config.study import StudyConfig
from scaling.redaction import secret_keys
from scaling.units import parse_share

__all__ = [  # every section, wherever it is written
    "AttentionConfig",
    "CheckpointConfig",
    "ClusterConfig",
    "ComponentConfig",
    "Count",
    "DataConfig",
    "DeviceConfig",
    "LayoutConfig",
    "LoggerConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "PlanConfig",
    "PositionConfig",
    "PrecisionConfig",
    "RunConfig",
    "RunSection",
    "ScheduleConfig",
    "StudyConfig",
    "TokenizerConfig",
    "TrainConfig",
    "conf_dir",
    "options_of",
]


def conf_dir() -> Path:
    """The groups: conf/ beside the package in a checkout, inside the package in a wheel."""
    package = Path(__file__).resolve().parents[1]
    checkout = package.parent / "conf"
    return checkout if (checkout / "config.yaml").is_file() else package / "conf"


def options_of(group: str) -> dict[str, Path]:
    """Name -> file, of every option of a group, those of plugins included."""
    # of one name, the file of conf/ is taken
    folders = [root / group for root in (*conf_dirs(), conf_dir())]
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


_Lr = Annotated[float, at_most(100, "and one step of Adam moves a weight by about the rate")]
_Eps = Annotated[float, at_most(1, "beside which no gradient would count")]
_WeightDecay = Annotated[float, at_most(100, "which would turn the sign of every weight in a step")]
_GradClip = Annotated[float, at_most(1e9, "which no norm reaches; 0 turns clipping off")]
_SpikeSigmas = Annotated[
    float, at_most(1e6, "which nothing reaches; on_spike=ignore looks at nothing")
]


class OptimConfig(Section):
    kind: Literal["adamw"] = Field(description="adamw: Loshchilov and Hutter 2019")
    lr: _Lr = Field(gt=0, description="peak learning rate")
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the first moment")
    beta2: float = Field(0.95, ge=0, lt=1, description="decay of the second moment")
    eps: _Eps = Field(1e-8, gt=0, description="added to the root of the second moment")
    weight_decay: _WeightDecay = Field(
        0.1, ge=0, description="on matrices; never on biases, norms and embeddings"
    )
    grad_clip: _GradClip = Field(
        1.0, ge=0, description="largest global gradient norm; 0: no clipping"
    )


class ScheduleConfig(Section):
    kind: Literal["cosine", "wsd", "constant", "inverse_sqrt"] = Field(
        description="cosine: to the end of the run; wsd: warm-up, stable, decay; constant: after warm-up; "
        "inverse_sqrt: falling as 1 / sqrt(tokens) after warm-up"
    )
    warmup_tokens: Share = Field(
        description="linear warm-up, as tokens or as a share of the run (2%)"
    )
    decay_tokens: Share = Field("20%", description="wsd: length of the final linear decay")
    min_lr_ratio: float = Field(0.1, ge=0, le=1, description="last learning rate over the peak")

    @model_validator(mode="after")
    def _warmup(self) -> Self:
        if self.kind == "inverse_sqrt" and not parse_share(self.warmup_tokens, 10**9):
            raise ValueError(
                "schedule=inverse_sqrt starts to fall from schedule.warmup_tokens, so that cannot be 0"
            )
        return self


class PrecisionConfig(Section):
    kind: Literal["auto", "fp32", "bf16"] = Field(
        description="auto: bf16 on GPUs, fp32 on CPUs; bf16 keeps fp32 master weights and optimiser states"
    )


class CheckpointConfig(Section):
    """When training is saved, and how much of that is kept. With neither steps nor minutes, `every`
    says when."""

    every: Literal["auto", "end"] = Field(
        "auto",
        description="auto: as often as loses least, by the measured time of a save and the time between failures (Young, Daly); "
        "end: only at the end and when stopped",
    )
    every_steps: int | None = Field(
        None, gt=0, description="steps between checkpoints; null: as `every` says"
    )
    every_minutes: float | None = Field(
        None,
        gt=0,
        le=LONGEST_S / 60,
        description="minutes between checkpoints; null: as `every` says",
    )
    keep_last: int = Field(2, gt=0, description="newest checkpoints that are kept")
    keep_every_steps: int | None = Field(
        None, gt=0, description="checkpoints at multiples of this are kept for ever"
    )
    keep_steps: tuple[Annotated[int, Field(gt=0)], ...] = Field(
        (), description="steps at which one is written, and kept for ever"
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.every_steps is not None and self.every_minutes is not None:
            raise ValueError(
                "checkpoint.every_steps and checkpoint.every_minutes are both set; give one"
            )
        if self.every == "end" and (self.every_steps is not None or self.every_minutes is not None):
            raise ValueError(
                "checkpoint.every=end leaves no room for checkpoint.every_steps or checkpoint.every_minutes"
            )
        if len(set(self.keep_steps)) < len(self.keep_steps):
            raise ValueError(
                f"checkpoint.keep_steps has one step twice: {', '.join(map(str, self.keep_steps))}"
            )
        return self


class LoggerConfig(Section):
    kind: Literal["none", "wandb", "tensorboard"] = Field(
        description="a view of metrics.jsonl, which is always written"
    )
    project: str = Field("scaling", description="wandb: project")
    entity: str | None = Field(None, description="wandb: team or user")
    group: str | None = Field(None, description="wandb: group of runs")


class TrainConfig(Section):
    n_tokens: Count | None = Field(
        gt=0, le=10**17, description="token budget; null: 20 per parameter (Hoffmann et al. 2022)"
    )
    global_batch_size: Count = Field(gt=0, le=2**30, description="sequences per optimiser step")
    seq_len: Count = Field(gt=1, le=2**30, description="tokens per sequence")
    seed: int = Field(
        0, ge=0, lt=2**63, description="of the initial weights, the data order and dropout"
    )
    log_every: int = Field(10, gt=0, description="steps between records in metrics.jsonl")
    eval_every: int | None = Field(
        None, gt=0, description="steps between evaluations; null: only at the end"
    )
    parent: str | None = Field(
        None,
        description="HASH@STEP of the run that this one goes on from with other values; null: none",
    )
    extend: str | None = Field(
        None,
        description="a finished run, equal but for fewer n_tokens, that this one goes on from; null: from its own beginning",
    )
    eval_sequences: int = Field(
        512, gt=0, description="held-out sequences of an evaluation, at most"
    )
    on_nonfinite: Literal["skip", "rollback", "fail"] = Field(
        "skip",
        description="a loss or gradients that are not finite; skip: leave the update out; rollback: go on from the last "
        "checkpoint without these sequences; fail: stop",
    )
    on_spike: Literal["ignore", "skip", "rollback", "fail"] = Field(
        "ignore", description="a loss or gradient norm that stands out; as on_nonfinite"
    )
    spike_sigmas: _SpikeSigmas = Field(
        6.0, gt=0, description="standard deviations above the mean from which it stands out"
    )
    spike_window: int = Field(
        128, gt=1, le=10**6, description="steps before, of which mean and deviation are"
    )
    max_rollbacks: int = Field(
        3, gt=0, description="to the same checkpoint, before the run is given up"
    )
    max_skips: int = Field(
        10, gt=0, description="updates left out in a row, before the run is given up"
    )
    compile: bool = Field(False, description="torch.compile each block")
    sample_prompt: str = Field("", description="prompt of the text generated at the end")
    sample_tokens: int = Field(0, ge=0, description="tokens generated at the end; 0: none")

    @field_validator("parent")
    @classmethod
    def _parent(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[0-9a-f]{8,64}@[0-9]+", value):
            raise ValueError(
                "it is not HASH@STEP, as 3f8a12bc@100, which population-based training writes"
            )
        return value


class InitSection(Section):
    """Weights that a run begins with in place of random ones."""

    source: str | None = Field(
        None,
        description="init_from=SOURCE for short; RUN[@STEP], an export's directory, hf:DIRECTORY_OR_NAME[@REVISION] or "
        "gguf:FILE, whose shape and tokenizer the run takes; null: random weights",
    )
    missing: Literal["refuse", "allow"] = Field(
        "refuse",
        description="allow: parameters that the source lacks, as a head, are made anew, and its other weights are left out",
    )
    content_hash: str | None = Field(
        None, description="SHA-256 of the source, part of the run's identity; null: is computed"
    )

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.source is None and (self.missing == "allow" or self.content_hash is not None):
            raise ValueError("init_from.missing and init_from.content_hash need init_from=SOURCE")
        return self


class RunSection(Section):
    root: str = Field(description="directory of run directories")
    name: Name | None = Field(
        None, description="first part of the run directory's name; null: the model's"
    )
    resume: Literal["auto", "never"] = Field(
        "auto", description="auto: continue what is there; never: refuse to"
    )


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
    init_from: InitSection = InitSection()
    run: RunSection
    plan: PlanConfig
    study: StudyConfig
    scaling: ProgramSection
    dry_run: bool = Field(False, description="print the plan and stop")

    @model_validator(mode="wrap")
    @classmethod
    def _kv_heads(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """An attention of kind gqa or mqa sets the model's key/value heads."""
        config = handler(values)
        model = config.model
        n_kv_heads = config.attention.kv_heads_for(model.n_heads, model.n_kv_heads)
        return config.model_copy(
            update={"model": model.model_copy(update={"n_kv_heads": n_kv_heads})}
        )

    @model_validator(mode="after")
    def _cross(self) -> Self:
        self._check_objective()
        vocab, entries = self.vocab_size, self.tokenizer.vocab_size
        if vocab < entries:
            raise ValueError(
                f"model.vocab_size={vocab} is smaller than tokenizer.vocab_size={entries}; leave it null"
            )
        check_combination(
            self.attention, self.position, d_model=self.model.d_model, d_head=self.model.head_width
        )
        check_parts(self.model, self.attention, self.objective)
        return self

    @model_validator(mode="after")
    def _no_secret(self) -> Self:
        for key in secret_keys(self.model_dump(mode="json")):
            raise ValueError(
                f"{key} holds a password or a key, which would be written into the run directory"
            )
        return self

    def _check_objective(self) -> None:
        """What is learnt must suit the model, the tokenizer and the data. Raises ValueError that
        says what would."""
        kind, family, tokenizer = self.objective.kind, self.model.family, self.tokenizer
        traits = self.model.traits
        if kind not in traits.objectives:
            raise ValueError(
                f"objective={kind} does not fit model.family={family}, which {traits.refusal};"
                f" use {' or '.join(traits.objectives)}"
            )
        if (kind == "seq2seq") != (self.data.kind == "text_pairs") and self.data.kind != "shards":
            if kind == "seq2seq":
                raise ValueError(
                    f"objective=seq2seq needs data=text_pairs data.path=..., and this is data={self.data.kind}"
                )
            raise ValueError(
                f"objective={kind} has no use for data=text_pairs, the kind of data.path={self.data.path}; "
                "pairs are for objective=seq2seq"
            )
        if needs_special_tokens(kind) and tokenizer.special_tokens == "eot":
            raise ValueError(
                f"objective={kind} needs padding, class, separator and mask: set tokenizer.special_tokens=all"
            )
        if not self.data.attend_across_documents and kind not in ("causal_lm", "masked_lm"):
            raise ValueError(
                f"data.attend_across_documents=false is for objective=causal_lm and masked_lm, and this is objective={kind}"
                + (", whose pairs never see each other" if kind == "seq2seq" else "")
            )
        if self.objective.whole_words and tokenizer.kind != "wordpiece":
            raise ValueError(
                f"objective.whole_words=true needs tokenizer=wordpiece; those of {tokenizer.kind} do not tell words"
            )

    @property
    def vocab_size(self) -> int:
        return self.model.vocab_size or self.tokenizer.vocab_size

    @property
    def scales_embedding(self) -> bool:
        """Whether embeddings are multiplied by sqrt(d_model)."""
        if self.model.scale_embedding is not None:
            return self.model.scale_embedding
        return self.model.traits.scaled_embedding or self.position.kind == "sinusoidal"

    @property
    def name(self) -> str:
        return self.run.name or self.model.name

    @property
    def dtype(self) -> Literal["fp32", "bf16"]:
        """Type of the matrix products: `precision.kind` with auto resolved for the cluster's
        device."""
        if self.precision.kind == "auto":
            return "bf16" if self.cluster.device.kind == "gpu" else "fp32"
        return self.precision.kind

    def _repr_html_(self) -> str:
        sections = self.model_dump(mode="json")
        name = f"{self.name}, id {self.run_id}"
        return markup.folded(f"Configuration of {name}", sections, is_open=True)

    def semantic(self) -> dict[str, Any]:
        """All that the mathematics of the run depends on, as a plain dict with null values
        resolved."""
        sections = (
            "model",
            "attention",
            "position",
            "objective",
            "data",
            "tokenizer",
            "optim",
            "schedule",
        )
        out: dict[str, Any] = {name: getattr(self, name).model_dump() for name in sections}
        for name in ("attention", "position"):  # a key that a kind does not read is null
            out[name] = {key: value for key, value in out[name].items() if value is not None}
        for key in HOW_DATA_COMES:
            del out["data"][key]
        for component in out["data"]["components"] or ():
            if component["val_path"] is None:  # as what came before there was one
                del component["val_path"]
        if self.data.val_target_path is None:
            del out["data"]["val_target_path"]
        if self.tokenizer.lossy == "refuse":
            del out["tokenizer"]["lossy"]
        model = self.model
        out["model"] |= {
            "n_kv_heads": model.kv_heads,
            "d_head": model.head_width,
            "d_ff": model.ff_width,
            "vocab_size": self.vocab_size,
        }
        del out["model"]["name"]
        for key in ADDED_LATER:  # by default as what came before there was a choice
            if out["model"][key] == ModelConfig.model_fields[key].default:
                del out["model"][key]
        out["precision"] = self.dtype
        out["train"] = {
            k: getattr(self.train, k) for k in ("n_tokens", "global_batch_size", "seq_len", "seed")
        }
        if self.train.parent is not None:
            out["train"]["parent"] = self.train.parent
            if self.train.extend is not None:  # its schedule begins anew at the parent's step
                out["train"]["extends"] = True
        if self.init_from.content_hash is not None:
            # the content counts, not the place where it lies
            out["init_from"] = {
                "content_hash": self.init_from.content_hash,
                "missing": self.init_from.missing,
            }
            del out["tokenizer"]["name"]
        return out

    @property
    def semantic_hash(self) -> str:
        """SHA-256 of the semantic configuration in canonical JSON, as 64 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.semantic(), sort_keys=True).encode()).hexdigest()

    @property
    def run_id(self) -> str:
        """First eight digits of the semantic hash, the last part of the run directory's name."""
        return self.semantic_hash[:8]
