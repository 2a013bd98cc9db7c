"""`python -m scaling.convert`: a trained run's weights as one model, in safetensors files."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from scaling.commands.options import run_command, say
from scaling.config.section import Section
from scaling.units import format_bytes, parse_bytes

USAGE = """\
Usage: python -m scaling.convert run=RUN to=DIRECTORY [KEY=VALUE ...]

Gathers the weights of a run's newest sound checkpoint, whatever layout wrote it, into safetensors files with config.json,
tokenizer.json and metadata.json beside them. It holds no more than one of the files in memory. The directory appears when
all of it is there. With names=hf it opens in the transformers library.

  python -m scaling.convert run=gpt_nano to=exported
  python -m scaling.convert run=gpt_1b to=exported names=hf dtype=bf16
  python -m scaling.convert run=gpt_1b to=early step=1000 max_shard_size=1GB

"""


class ConvertOptions(Section):
    run: str = Field(
        description="a run's directory, or its name under run.root, without its id where that is enough"
    )
    to: str = Field(
        min_length=1, description="the directory to make; it may not exist yet, unless it is empty"
    )
    root: str = Field(
        "runs", alias="run.root", description="the directory of run directories, as for scaling.run"
    )
    step: int | None = Field(
        None, ge=0, description="the checkpoint after this step; default: the newest that is sound"
    )
    names: Literal["own", "hf"] = Field(
        "own", description="own: weights as we call them; hf: as the transformers library does"
    )
    dtype: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16: weights rounded to half the size"
    )
    max_shard_size: Annotated[int, BeforeValidator(parse_bytes)] = Field(
        "5GB",
        gt=0,
        validate_default=True,
        description="size of a file at most; a larger matrix has a file of its own",
    )


def convert(options: ConvertOptions) -> None:
    """Write the directory, and its path to standard output. Raises ScalingError."""
    from scaling.runs.by_name import find_run

    run = find_run(options.run, options.root, say)
    # a mistake is told before torch is loaded
    from scaling.inference.consolidate import consolidate

    made = consolidate(
        run,
        options.to,
        hf=options.names == "hf",
        dtype=options.dtype,
        max_shard_bytes=options.max_shard_size,
        step=options.step,
        notice=say,
    )
    files = f"{made.n_files} file" + ("s" if made.n_files > 1 else "")
    say(
        f"{run.name}, after step {made.step}: {format_bytes(made.total_bytes)} of {options.dtype} weights in {files}"
    )
    print(made.path)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0, 2 for a wrong option or run, 1 for anything else."""
    return run_command(ConvertOptions, convert, USAGE, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
