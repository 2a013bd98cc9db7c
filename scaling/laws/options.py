"""The KEY=VALUE options of `scaling.fit` and `scaling.predict`, with their help and their
checks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from scaling.config.paths import split_words
from scaling.config.section import Section
from scaling.laws.checks import REASONS
from scaling.laws.fit import DEFAULT_DELTA


def _words(value: Any) -> Any:
    return split_words(value) if isinstance(value, str) else value


def _pairs(value: Any) -> Any:
    """Parse "a:1,b:2" as (("a", "1"), ("b", "2"))."""
    parts = _words(value)
    if isinstance(value, str) and not all(":" in part for part in parts):
        raise ValueError("write it as NAME:VALUE,NAME:VALUE")
    return tuple(tuple(part.split(":", 1)) for part in parts) if isinstance(value, str) else value


PathText = Annotated[
    str,
    BeforeValidator(lambda value: os.path.expanduser(value) if isinstance(value, str) else value),
]
"""A path. The shell does not expand `~` after an equals sign, so this type does."""
Positive = Annotated[float, Field(gt=0)]
Words = Annotated[tuple[str, ...], BeforeValidator(_words)]
Numbers = Annotated[tuple[Positive, ...], BeforeValidator(_words)]
Pairs = Annotated[tuple[tuple[str, str], ...], BeforeValidator(_pairs)]
NumberPairs = Annotated[tuple[tuple[Positive, Positive], ...], BeforeValidator(_pairs)]


class FitOptions(Section):
    """The options of `python -m scaling.fit`."""

    table: str | None = Field(
        None, description="a CSV file, one point a line, its columns named on the first"
    )
    study: str | None = Field(None, description="a directory of runs, instead of a table")
    out: PathText | None = Field(
        None, description="directory of the report; default: STUDY/laws, or laws-TABLE here"
    )
    loss: str = Field("loss", description="column of the loss in nats per token")
    n: str | None = Field(None, description="column of N, parameters")
    d: str | None = Field(None, description="column of D, tokens")
    c: str | None = Field(
        None, description="column of C, FLOPs; what is missing of N, D and C follows from C = 6 N D"
    )
    run: str | None = Field(
        None,
        description="column of the run, where a run has several points; default: each line is one",
    )
    unique: str | None = Field(
        None, description="column of unique tokens, for laws of repeated data"
    )
    metric: str | None = Field(None, description="column of a downstream metric")
    warmup: str | None = Field(
        None, description="column of warm-up tokens; runs that are mostly warm-up are left out"
    )
    decayed: str | None = Field(
        None,
        description="column that is true where the learning rate had decayed; others are left out",
    )
    where: Pairs = Field((), description="COLUMN:VALUE,...: only these rows")
    same: Words = Field(
        (), description="COLUMN,...: refuse the table when one of these differs between its rows"
    )
    n_counts: str | None = Field(
        None,
        description="what N counts, noted with the fit; for a study with_embeddings (default) "
        "or without_embeddings",
    )
    c_counts: Literal["6ND", "exact"] | None = Field(
        None, description="what C counts; default: exact of a study, else as found"
    )
    keep: Words = Field(
        (), description=f"flagged points to fit all the same, of {', '.join(REASONS)}"
    )
    drop_highest: int = Field(0, ge=0, description="leave out this many points of the highest loss")
    form: Words = Field(
        (),
        description="forms to fit; default: all in N and D that the points allow, "
        "else those in one variable",
    )
    delta: float = Field(DEFAULT_DELTA, gt=0, description="of the Huber loss of log residuals")
    draws: int = Field(1000, ge=50, le=100_000, description="bootstrap draws")
    seed: int = Field(0, ge=0, description="of the draws")
    cuts: Numbers = Field(
        (), description="FLOPs,...: fit below, judge above; default: shares of the largest run's"
    )
    budgets: Numbers = Field(
        (), description="FLOPs,... of the IsoFLOP curves; default: those at which enough sizes meet"
    )
    curve: Literal["akima", "parabola"] = Field(
        "akima", description="how the minimum of an IsoFLOP curve is found"
    )
    window: int = Field(7, ge=4, description="points of curve=parabola")
    noise: NumberPairs = Field(
        (),
        description="LOSS:SD,...: noise of the loss between seeds, interpolated; "
        "default: estimated from the curves",
    )

    @model_validator(mode="after")
    def _source(self) -> Self:
        if (self.table is None) == (self.study is None):
            raise ValueError("give one of table=FILE.csv and study=DIR")
        unknown = [word for word in self.keep if word not in REASONS]
        if unknown:
            raise ValueError(f"keep={unknown[0]} is unknown; there are {', '.join(REASONS)}")
        if self.study is not None:
            named = [
                key
                for key in (
                    "n",
                    "d",
                    "c",
                    "run",
                    "unique",
                    "metric",
                    "warmup",
                    "decayed",
                    "where",
                    "same",
                )
                if getattr(self, key)
            ]
            if named:
                raise ValueError(
                    f"{named[0]} names a column, and a study has none; it goes with table=FILE.csv"
                )
        return self

    @property
    def source(self) -> Path:
        """The study or the table."""
        return Path(str(self.study or self.table))

    @property
    def directory(self) -> Path:
        """Directory of the report."""
        if self.out is not None:
            return Path(self.out)
        return self.source / "laws" if self.study is not None else Path(f"laws-{self.source.stem}")


class PredictOptions(Section):
    """The options of `python -m scaling.predict`."""

    fit: PathText = Field(
        description="the directory of a report of python -m scaling.fit, or its fit.json"
    )
    form: str | None = Field(
        None, description="the form to predict with; default: the first fitted"
    )
    c: float | None = Field(
        None, gt=0, description="a budget in FLOPs: the best N and D, and their loss"
    )
    n: float | None = Field(None, gt=0, description="parameters of a run, with d")
    d: float | None = Field(None, gt=0, description="tokens of a run, with n")
    loss: float | None = Field(
        None, gt=0, description="a wanted loss in nats: the least budget that reaches it"
    )
    cluster: str | None = Field(
        None, description="a cluster of conf/cluster: hours, cost and energy of the recommended run"
    )
    model: str | None = Field(
        None, description="from_law: the nearest shape and the command that trains it"
    )
    out: PathText | None = Field(
        None, description="file for the recommended configuration as YAML; default: none is written"
    )
    launch: bool = Field(False, description="start that command")
    json_: bool = Field(False, alias="json", description="print one JSON object instead of text")

    @model_validator(mode="after")
    def _question(self) -> Self:
        asked = [
            self.c is not None,
            self.n is not None or self.d is not None,
            self.loss is not None,
        ]
        if sum(asked) != 1:
            raise ValueError("ask one thing: c=FLOPS, n=PARAMETERS d=TOKENS, or loss=NATS")
        if (self.n is None) != (self.d is None):
            raise ValueError("a run is given by both n=PARAMETERS and d=TOKENS")
        if self.model not in (None, "from_law"):
            raise ValueError(f"model={self.model} is unknown; there is model=from_law")
        if self.out is not None and not (self.model or self.cluster or self.launch):
            raise ValueError(
                "out=FILE holds a recommended run; ask for one with model=from_law or cluster=NAME"
            )
        return self
