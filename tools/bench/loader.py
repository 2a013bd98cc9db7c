"""Measure the loader on the default corpus: tokens per second and core, seconds to the first batch at two positions.

Usage: OMP_NUM_THREADS=1 python tools/bench/loader.py [SECONDS]     length of each measurement, default 3

A core's rate is tokens over the CPU seconds of the whole process (the prefetching thread and its consumer). Imports of torch and
webdataset are done before the clock starts; the first batch includes opening, checking and joining every shard it touches.
"""

from __future__ import annotations

import os
import platform
import sys
import time

import numpy as np
import torch
import webdataset
from rich.console import Console
from rich.table import Table

from scaling.config import DataConfig, TokenizerConfig
from scaling.data.corpus import ensure_corpus
from scaling.data.loader import Loader
from scaling.data.objective import causal_lm
from scaling.data.shards import CorpusIndex
from scaling.data.stream import SequenceStream

GLOBAL_BATCH_SIZE = 16


def open_loader(directory: str, seq_len: int, start_sequence: int) -> Loader:
    stream = SequenceStream(directory, CorpusIndex.load(directory), "train", seq_len, seed=0)
    return Loader(
        stream,
        make_batch=causal_lm,
        global_batch_size=GLOBAL_BATCH_SIZE,
        dp_rank=0,
        dp=1,
        micro_batch_size=GLOBAL_BATCH_SIZE,
        start_sequence=start_sequence,
    )


def first_batch_s(directory: str, seq_len: int, start_sequence: int, repeats: int = 5) -> float:
    """Median over fresh loaders, shards in the page cache."""
    times = []
    for _ in range(repeats):
        begun_s = time.perf_counter()
        with open_loader(directory, seq_len, start_sequence) as loader:
            next(loader)
            times.append(time.perf_counter() - begun_s)
    return float(np.median(times))


def tokens_per_core_second(directory: str, seq_len: int, seconds: float) -> tuple[float, float]:
    """Tokens per CPU second, and per second of the clock, after the first batch."""
    with open_loader(directory, seq_len, 0) as loader:
        next(loader)
        n_tokens, begun_s, begun_cpu_s = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - begun_s < seconds:
            micro_batches, _ = next(loader)
            n_tokens += sum(batch.tokens_BT.numel() for batch in micro_batches)
        return n_tokens / (time.process_time() - begun_cpu_s), n_tokens / (time.perf_counter() - begun_s)


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 3.0
    cache_dir = os.environ.get("SCALING_CACHE", "~/.cache/scaling")
    tokenizer = TokenizerConfig(kind="bpe", vocab_size=4096)
    directory = str(ensure_corpus(DataConfig(kind="python_stdlib", cache_dir=cache_dir), tokenizer))
    table = Table("seq_len", "M tokens/s per core", "M tokens/s", "first batch at 0", "first batch at 10^8")
    for seq_len in (256, 1024):
        per_core, rate = tokens_per_core_second(directory, seq_len, seconds)
        waits = [f"{1000 * first_batch_s(directory, seq_len, start):.0f} ms" for start in (0, 10**8)]
        table.add_row(str(seq_len), f"{per_core / 1e6:.1f}", f"{rate / 1e6:.1f}", *waits)
    Console().print(table)
    print(f"global batch {GLOBAL_BATCH_SIZE} sequences, torch {torch.__version__}, webdataset {webdataset.__version__}")
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}")


if __name__ == "__main__":
    main()
