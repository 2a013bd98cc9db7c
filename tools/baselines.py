"""Print the entropy of unigram and bigram models of a corpus, as a scale for the loss of a trained
model.

Usage: python tools/baselines.py [DIRECTORY]     directory or URL with index.json; default: the
  default corpus
"""

from __future__ import annotations

import os
import sys

from rich.console import Console
from rich.table import Table

from scaling.config.run_config import DataConfig, TokenizerConfig
from scaling.data.entropy import split_entropies
from scaling.data.prepare.cached import ensure_corpus
from scaling.errors import ScalingError


def default_corpus() -> str:
    cache_dir = os.environ.get("SCALING_CACHE", "~/.cache/scaling")
    return str(
        ensure_corpus(
            DataConfig(kind="python_stdlib", cache_dir=cache_dir),
            TokenizerConfig(kind="bpe", vocab_size=4096),
        )
    )


def main() -> None:
    directory = sys.argv[1] if len(sys.argv) > 1 else default_corpus()
    table = Table(
        "model",
        "nats per token",
        "bits per byte",
        title=f"fitted on train, measured on val of {directory}",
    )
    for name, entropy in split_entropies(directory).items():
        table.add_row(name, f"{entropy['nats_per_token']:.4f}", f"{entropy['bits_per_byte']:.4f}")
    Console().print(table)


if __name__ == "__main__":
    try:
        main()
    except ScalingError as error:
        sys.exit(f"{type(error).__name__}: {error}")
