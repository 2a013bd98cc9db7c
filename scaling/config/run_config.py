"""The validated configuration: one frozen model per group in conf/, and the run's identity.

Composition (`composition/compose.py`) ends in a plain dict; `RunConfig` checks every value of it
once, and nobody edits it downstream. What changes the mathematics is *semantic* and hashed to the
run id; what only changes how the mathematics is executed (cluster, layout, logger, checkpoint
interval) is not.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    Field,
    ModelWrapValidatorHandler,
    model_validator,
)

from scaling import markup
from scaling.config.attention import AttentionConfig, PositionConfig, check_combination
from scaling.config.cluster import ClusterConfig, DeviceConfig, LayoutConfig, PlanConfig
from scaling.config.data import HOW_DATA_COMES, ComponentConfig, DataConfig, TokenizerConfig
from scaling.config.model import ADDED_LATER, ModelConfig, ObjectiveConfig, needs_special_tokens
from scaling.config.parts import check_parts
from scaling.config.plugins import conf_dirs
from scaling.config.section import Count, Name, Section
from scaling.config.study import StudyConfig
from scaling.config.training import (
    CheckpointConfig,
    OptimConfig,
    PrecisionConfig,
    ScheduleConfig,
    TrainConfig,
)
from scaling.redaction import secret_keys

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


class LoggerConfig(Section):
    kind: Literal["none", "wandb", "tensorboard"] = Field(
        description="a view of metrics.jsonl, which is always written"
    )
    project: str = Field("scaling", description="wandb: project")
    entity: str | None = Field(None, description="wandb: team or user")
    group: str | None = Field(None, description="wandb: group of runs")


class InitSection(Section):
    """Weights that a run begins with in place of random ones."""

    source: str | None = Field(
        None,
        description="init_from=SOURCE for short; "
        "RUN[@STEP], an export's directory, hf:DIRECTORY_OR_NAME[@REVISION] or gguf:FILE, "
        "whose shape and tokenizer the run takes; null: random weights",
    )
    missing: Literal["refuse", "allow"] = Field(
        "refuse",
        description="allow: parameters that the source lacks, as a head, are initialised, "
        "and its other weights are left out",
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
                f"model.vocab_size={vocab} is smaller than tokenizer.vocab_size={entries}; "
                "leave it null"
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
                    "objective=seq2seq needs data=text_pairs data.path=..., "
                    f"and this is data={self.data.kind}"
                )
            raise ValueError(
                f"objective={kind} has no use for data=text_pairs, "
                f"the kind of data.path={self.data.path}; pairs are for objective=seq2seq"
            )
        if needs_special_tokens(kind) and tokenizer.special_tokens == "eot":
            raise ValueError(
                f"objective={kind} needs padding, class, separator and mask: "
                "set tokenizer.special_tokens=all"
            )
        if not self.data.attend_across_documents and kind not in ("causal_lm", "masked_lm"):
            raise ValueError(
                "data.attend_across_documents=false is for objective=causal_lm and masked_lm, "
                f"and this is objective={kind}"
                + (", whose pairs never see each other" if kind == "seq2seq" else "")
            )
        if self.objective.whole_words and tokenizer.kind != "wordpiece":
            raise ValueError(
                "objective.whole_words=true needs tokenizer=wordpiece; "
                f"those of {tokenizer.kind} do not tell words"
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
            if self.train.extend is not None:  # its schedule begins again at the parent's step
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
