"""Group `study`: many trials that are declared, run and fitted together; none of it is in a trial's
identity."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from scaling.config.section import Count, Name, Section, at_most
from scaling.units import parse_count


def _size(value: Any) -> Any:
    """A count of parameters, or the name of a model."""
    try:
        return parse_count(value)
    except ValueError:
        return value


Size = Annotated[int | str, BeforeValidator(_size)]

READ_BY: dict[str, tuple[str, ...]] = {
    "none": (),
    "isoflop": ("sizes", "budgets", "least_tokens_per_param", "most_tokens_per_param"),
    "ladder": ("sizes", "tokens_per_param"),
    "lr_batch": ("batches", "lr_factors", "batch_rule"),
    "lr_width": ("widths", "lr_factors"),
    "wsd": ("sizes", "tokens"),
    "asha": ("space", "n_trials", "sampler", "first_rung_tokens", "reduction_factor"),
    "pbt": ("space", "n_trials", "interval_tokens"),
    "bayesian": ("space", "n_trials"),
}
"""Keys that a kind of study reads, beside those that all do."""
SHARED = ("kind", "name", "max_attempts", "trials_per_device", "seed")


_TokensPerParam = Annotated[float, at_most(1e9, "and no model sees a billion tokens a parameter")]


class Range(Section):
    """The values between two numbers that a search draws from."""

    low: float = Field(description="least value")
    high: float = Field(description="greatest value")
    log: bool = Field(False, description="evenly in the logarithm")
    integer: bool = Field(False, description="whole numbers only")

    @model_validator(mode="after")
    def _order(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low={self.low:g} is not below high={self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"log=true needs low above 0, and it is {self.low:g}")
        return self


Choices = Range | tuple[float | int | bool | str, ...]
"""What a search draws a key's value from: a range, or a list."""


class StudyConfig(Section):
    kind: Literal[
        "none", "isoflop", "ladder", "lr_batch", "lr_width", "wsd", "asha", "pbt", "bayesian"
    ] = Field(
        description="none: as the command line sweeps; isoflop: budgets x sizes; "
        "ladder: sizes x tokens per parameter; lr_batch, lr_width: learning rates x batches, "
        "or widths; wsd: trunks and cool-downs; asha, pbt, bayesian: searches"
    )
    name: Name | None = Field(
        None, description="directory under run.root; null: the kind, or sweep"
    )
    max_attempts: int = Field(3, gt=0, description="failures of a trial after which it is given up")
    trials_per_device: int = Field(
        1, gt=0, le=1024, description="trials that share a device, where their memory allows it"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="of what a search draws")
    sizes: tuple[Size, ...] = Field(
        (), description="names of models, or counts of parameters: the model's shape scaled"
    )
    budgets: tuple[float, ...] = Field(
        (), description="isoflop: training FLOPs; tokens follow from them"
    )
    least_tokens_per_param: _TokensPerParam = Field(
        1.0, gt=0, description="isoflop: runs of fewer are left out"
    )
    most_tokens_per_param: _TokensPerParam = Field(
        400.0, gt=0, description="isoflop: runs of more are left out"
    )
    tokens_per_param: tuple[float, ...] = Field(
        (), description="ladder: tokens over parameters, embeddings included"
    )
    batches: tuple[Count, ...] = Field((), description="lr_batch: global batches in sequences")
    lr_factors: tuple[float, ...] = Field(
        (), description="lr_batch, lr_width: multiples of the rate"
    )
    widths: tuple[int, ...] = Field(
        (), description="lr_width: values of d_model; heads keep their width, so their number grows"
    )
    batch_rule: Literal["none", "linear", "sqrt", "sde"] = Field(
        "sqrt",
        description="lr_batch: learning rate as batch^0, batch, batch^0.5; "
        "sde: that and Adam's betas and eps too",
    )
    tokens: tuple[Count, ...] = Field(
        (), description="wsd: lengths of the cooled-down runs of one trunk"
    )
    space: dict[str, Choices] | None = Field(
        None, description="searches: KEY: [values] or KEY: {low, high, log, integer}"
    )
    n_trials: int = Field(
        16, gt=0, le=100_000, description="searches: trials; of pbt the population"
    )
    sampler: Literal["random", "optuna"] = Field(
        "random", description="asha: how values are drawn; optuna: as earlier trials suggest"
    )
    first_rung_tokens: Count | None = Field(
        None, gt=0, description="asha: tokens before the first cut; null: a 16th of the run"
    )
    reduction_factor: int = Field(4, gt=1, description="asha: one in so many continues from a rung")
    interval_tokens: Count | None = Field(
        None, gt=0, description="pbt: tokens between exchanges; null: an 8th of the run"
    )

    @model_validator(mode="after")
    def _keys(self) -> Self:
        read = {*SHARED, *READ_BY[self.kind]}
        for name in type(self).model_fields:
            if name not in read and getattr(self, name) != type(self).model_fields[name].default:
                readers = ", ".join(
                    f"study={kind}" for kind, keys in READ_BY.items() if name in keys
                )
                raise ValueError(
                    f"study.{name} is set, but only {readers} reads it, "
                    f"and this is study={self.kind}"
                )
        for name in ("budgets", "tokens_per_param", "lr_factors"):
            if any(value <= 0 for value in getattr(self, name)):
                raise ValueError(f"study.{name} has a value that is not above 0")
        return self

    @property
    def directory_name(self) -> str:
        return self.name or ("sweep" if self.kind == "none" else self.kind)

    @property
    def is_search(self) -> bool:
        return self.kind in ("asha", "pbt", "bayesian")
