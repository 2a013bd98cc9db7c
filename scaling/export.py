"""`python -m scaling.export`: something trained as a directory for another program."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from scaling.commands.options import run_command, say
from scaling.inference.options import SourceOptions
from scaling.units import format_bytes, parse_bytes

USAGE = """\
Usage: python -m scaling.export from=SOURCE to=DIRECTORY [KEY=VALUE ...]

Writes the weights of a run, whatever layout wrote its checkpoint, or of another source into
safetensors files with config.json, tokenizer.json and metadata.json beside them. What was written
is opened again by the program it is for, which must compute the same logits. The directory appears
when all of it is there. format=hf is for the transformers library, format=gguf for llama.cpp.

  python -m scaling.export from=gpt_nano to=exported
  python -m scaling.export from=gpt_1b to=exported format=hf dtype=bf16
  python -m scaling.export from=gpt_1b@1000 to=early max_shard_size=1GB

"""


class ExportOptions(SourceOptions):
    to: str = Field(min_length=1, description="the directory to make; new, or an empty one")
    format: Literal["safetensors", "hf", "gguf"] = Field(
        "safetensors",
        description="safetensors: weights as we call them; hf: as the transformers library does; "
        "gguf: one file for llama.cpp",
    )
    dtype: Literal["fp32", "bf16", "fp16", "q8_0"] = Field(
        "fp32",
        description="bf16: weights rounded to half the size; fp16, q8_0 (8 bits): of format=gguf",
    )
    max_shard_size: Annotated[int, BeforeValidator(parse_bytes)] = Field(
        "5GB",
        gt=0,
        validate_default=True,
        description="size of a file at most; a larger matrix has a file of its own",
    )
    check: Literal["logits", "weights"] = Field(
        "logits",
        description="logits: what was written computes the same, which takes the whole model in "
        "memory; weights: what was written is the same, one weight at a time",
    )

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.format != "gguf" and self.dtype in ("fp16", "q8_0"):
            raise ValueError(f"dtype={self.dtype} is for format=gguf; use dtype=fp32 or bf16")
        if self.format == "gguf" and self.check == "weights":
            raise ValueError("check=weights is for format=safetensors and hf")
        return self


def write(options: ExportOptions) -> None:
    """Write the directory, and its path to standard output. Raises ScalingError."""
    from scaling.weights.source import find_source

    found = find_source(options.source, options.root, say)
    # torch: a mistake is reported before it is loaded
    from scaling.inference.export import export

    made = export(
        found,
        options.to,
        format=options.format,
        dtype=options.dtype,
        max_shard_bytes=options.max_shard_size,
        check=options.check,
    )
    files = f"{made.n_files} file" + ("s" if made.n_files > 1 else "")
    say(f"{found.title}: {format_bytes(made.total_bytes)} of {options.dtype} weights in {files}")
    if options.check == "logits":
        check = made.check
        say(
            f"{check['runtime']} computes the same logits of {check['n_tokens']} tokens, to "
            f"{check['largest_logit_difference']:.2g} (roundings: up to {check['bound']:.2g})"
        )
    print(made.path)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0, 2 for a wrong option or source, 1 for anything else."""
    return run_command(ExportOptions, write, USAGE, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
