"""`python -m scaling.generate`: text from a trained run, shown while it is made."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from scaling.api import TrainedSource
from scaling.commands.options import run_command, say
from scaling.inference.options import GenerateOptions
from scaling.screen import visible
from scaling.weights.source import find_source

USAGE = """\
Usage: python -m scaling.generate from=RUN prompt="TEXT" [KEY=VALUE ...]

Shows what a trained run makes of a text, token by token: what follows it (gpt,
objective=prefix_lm), its translation (objective=seq2seq), or the text with each <mask> in it filled
in (t5, objective=span_corruption). For bert: scaling.fill. from= is a run, an export,
hf:DIRECTORY_OR_NAME[@REVISION] or gguf:FILE.

  python -m scaling.generate from=gpt_nano prompt="def main("
  python -m scaling.generate from=gpt_nano prompt="import" temperature=1 top_p=0.9 n_samples=3
  python -m scaling.generate from=t5_tiny prompt="for <mask> in range(9):" method=greedy show=spans
  echo "Ein Hund läuft." | python -m scaling.generate from=transformer_base prompt=- n_beams=8

"""


def generate(options: GenerateOptions) -> None:
    """Write the texts to standard output. Raises ScalingError."""
    source = TrainedSource(find_source(options.source, options.root, say))
    from scaling.inference.text import (
        texts,  # torch: a wrong source is reported before it is loaded
    )

    run = source.open(device=options.device)
    say(source.title)
    shown = visible if sys.stdout.isatty() else str  # a pipe gets what the model wrote
    for number, pieces in enumerate(texts(run, options), start=1):
        if options.n_samples > 1:
            print(f"--- {number} of {options.n_samples}", flush=True)
        for piece in pieces:
            print(shown(piece), end="", flush=True)
        print(flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0, 2 for a wrong option or run, 1 for anything else."""
    return run_command(GenerateOptions, generate, USAGE, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
