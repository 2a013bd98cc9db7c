"""How a run is trained and saved: groups `optim`, `schedule`, `precision` and `checkpoint`, and the
section `train`."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from scaling.config.section import LONGEST_S, Count, Section, Share, at_most
from scaling.units import parse_share

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
        description="cosine: to the end of the run; wsd: warm-up, stable, decay; constant: "
        "after warm-up; "
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
                "schedule=inverse_sqrt starts to fall from schedule.warmup_tokens, "
                "so that cannot be 0"
            )
        return self


class PrecisionConfig(Section):
    kind: Literal["auto", "fp32", "bf16"] = Field(
        description="auto: bf16 on GPUs, fp32 on CPUs; bf16 keeps fp32 master weights and "
        "optimiser states"
    )


class CheckpointConfig(Section):
    """When training is saved, and how much of that is kept. With neither steps nor minutes, `every`
    says when."""

    every: Literal["auto", "end"] = Field(
        "auto",
        description="auto: as often as loses least, by the measured time of a save and the time "
        "between failures (Young, Daly); "
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
                "checkpoint.every=end leaves no room for checkpoint.every_steps or "
                "checkpoint.every_minutes"
            )
        if len(set(self.keep_steps)) < len(self.keep_steps):
            raise ValueError(
                f"checkpoint.keep_steps has one step twice: {', '.join(map(str, self.keep_steps))}"
            )
        return self


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
        description="HASH@STEP of the run that this one continues with other values; null: none",
    )
    extend: str | None = Field(
        None,
        description="a finished run, equal but for fewer n_tokens, that this one continues from; "
        "null: from its own beginning",
    )
    eval_sequences: int = Field(
        512, gt=0, description="held-out sequences of an evaluation, at most"
    )
    on_nonfinite: Literal["skip", "rollback", "fail"] = Field(
        "skip",
        description="a loss or gradients that are not finite; skip: leave the update out; "
        "rollback: continue from the last "
        "checkpoint without these sequences; fail: stop",
    )
    on_spike: Literal["ignore", "skip", "rollback", "fail"] = Field(
        "ignore",
        description="reaction to a spike of loss or gradient norm; values as for on_nonfinite",
    )
    spike_sigmas: _SpikeSigmas = Field(
        6.0, gt=0, description="standard deviations above the mean from which a value is a spike"
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
