"""What may be asked of a trained run: the options of `scaling.generate` and `scaling.fill`, checked
without torch."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from scaling.config.run_config import RunConfig
from scaling.config.section import Section

Method = Literal["greedy", "sample", "beam"]

READERS: dict[str, tuple[Method, ...]] = {
    "temperature": ("sample",),
    "top_k": ("sample",),
    "top_p": ("sample",),
    "seed": ("sample",),
    "n_beams": ("beam",),
    "length_penalty": ("beam",),
    "n_samples": ("sample", "beam"),
}
"""Options that only some methods read."""
N_TOKENS = 128
"""Tokens that a decoder alone writes, since it has no length of its own. Assumption."""


class SourceOptions(Section):
    """Which trained model is opened."""

    source: str = Field(
        alias="from",
        description="RUN[@STEP]: a run's directory, or its name under run.root, "
        "without its id where that is enough; "
        "DIRECTORY: an export; hf:DIRECTORY or hf:NAME[@REVISION]; gguf:FILE",
    )
    root: str = Field(
        "runs", alias="run.root", description="the directory of run directories, as for scaling.run"
    )


class PromptOptions(SourceOptions):
    """A trained model, and what it is given."""

    prompt: str = Field(description="the text to begin with; - reads it from standard input")
    device: str = Field("auto", description="auto: a GPU where there is one; or cpu, cuda, cuda:1")


class GenerateOptions(PromptOptions):
    method: Method | None = Field(
        None,
        description="greedy: always the likeliest token; sample: drawn at random; "
        "beam: the likeliest text of a beam search; "
        "default: what the other options belong to, else beam for translations and sample for "
        "everything else",
    )
    max_new_tokens: int | None = Field(
        None,
        gt=0,
        description=f"most tokens of a text; default: {N_TOKENS}, or what a decoder beside an "
        "encoder learnt",
    )
    temperature: float = Field(
        0.8, ge=0, description="sample: the lower, the more often the likelier token; 0 is greedy"
    )
    top_k: int | None = Field(None, gt=0, description="sample: among the k likeliest tokens only")
    top_p: float | None = Field(
        None,
        gt=0,
        le=1,
        description="sample: among the likeliest that together have this probability",
    )
    seed: int = Field(
        0,
        ge=0,
        lt=2**63,
        description="sample: the same seed draws the same text on the same device",
    )
    n_samples: int = Field(
        1, gt=0, description="sample: so many texts, of seed, seed + 1, ...; beam: the best so many"
    )
    n_beams: int = Field(4, gt=0, le=1024, description="beam: texts that are followed at once")
    length_penalty: float = Field(
        0.6, description="beam: the larger, the longer the text (Wu et al. 2016)"
    )
    show: Literal["text", "spans"] = Field(
        "text",
        description="of a prompt with gaps, text: all of it, filled in; "
        "spans: what belongs in each gap, a line each",
    )

    @property
    def _given(self) -> list[str]:
        """Options on the command line that choose a method, by name."""
        return sorted(name for name in self.model_fields_set if name in READERS)

    @model_validator(mode="after")
    def _together(self) -> Self:
        for name in self._given:
            if self.method is not None and self.method not in READERS[name]:
                raise ValueError(
                    f"method={self.method} does not read {name}; "
                    f"use method={' or '.join(READERS[name])}"
                )
        drawn, searched = (
            [name for name in self._given if READERS[name] == (method,)]
            for method in ("sample", "beam")
        )
        if drawn and searched:
            raise ValueError(
                f"{drawn[0]} is for method=sample and {searched[0]} for method=beam; "
                "give one of them"
            )
        return self

    def method_for(self, config: RunConfig) -> Method:
        """The method that was given, or that the other options belong to, or that suits the
        objective."""
        if self.method is not None:
            return self.method
        own = [READERS[name][0] for name in self._given if len(READERS[name]) == 1]
        return own[0] if own else "beam" if config.objective.kind == "seq2seq" else "sample"


class FillOptions(PromptOptions):
    top_k: int = Field(5, gt=0, description="choices for each gap, the likeliest first")
