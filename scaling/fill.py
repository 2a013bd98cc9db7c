"""`python -m scaling.fill`: what a trained BERT puts in the gaps of a text."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from scaling.api import TrainedSource
from scaling.commands.options import run_command, say
from scaling.inference.options import FillOptions
from scaling.weights.source import find_source

USAGE = """\
Usage: python -m scaling.fill from=RUN prompt="TEXT with <mask>" [KEY=VALUE ...]

Shows the likeliest tokens of each <mask>, with their probabilities; each gap is one token, and is
filled as if the others were still hidden. For bert; other families: scaling.generate.

  python -m scaling.fill from=bert_tiny prompt="import <mask>" top_k=3

"""


def show_choices(options: FillOptions) -> None:
    """Write the choices of each gap to standard output. Raises ScalingError."""
    source = TrainedSource(find_source(options.source, options.root, say))
    from scaling.inference.text import (
        choices,  # torch: a wrong source is reported before it is loaded
    )

    run = source.open(device=options.device)
    say(source.title)
    for number, best in enumerate(choices(run, options), start=1):
        print(f"gap {number}")
        for token, probability in best:
            print(f"  {probability:7.2%}  {token}")


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0, 2 for a wrong option or run, 1 for anything else."""
    return run_command(FillOptions, show_choices, USAGE, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
