"""Measure the loader's tokens per second and core, beside litdata and plain webdataset on the same
tokens; and seek times.

Usage: OMP_NUM_THREADS=1 python tools/bench/loader.py [ROUNDS [SECONDS [DIR]]]     default: 5 rounds
  of 2 seconds a side

litdata is no dependency: pip install litdata (0.2.76 was measured) beside the project; without it
that side is left out. DIR holds shards; without it the corpus is data=python_packages with
tokenizer=bpe, prepared on the first use. Sides, each in a process of its own that sleeps while the
others run, all giving batches of 16 sequences in random order as int64 tensors of tokens and of
targets:
  scaling      Loader, one thread, on the shards as they are
  litdata      StreamingDataset with TokensLoader and shuffle=True, StreamingDataLoader with
               num_workers=0, on its own copy
  webdataset   WebDataset over the shards, documents decoded and packed one behind the other,
               shuffle(1000)
A core's rate is tokens over the CPU seconds of the whole process, so that threads do not flatter a
side. A seek is the time from opening a fresh loader to the first batch from there: scaling is told
the number of a sequence, litdata loads a state of its own that says so, webdataset has no way but
to read on (for 10^8, sequences over its rate: not run).
"""

from __future__ import annotations

import importlib.util
import itertools
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from quiet import wait_for_quiet
from rich.console import Console
from rich.table import Table

from scaling.config.run_config import DataConfig, TokenizerConfig
from scaling.data.prepare.cached import ensure_corpus
from scaling.data.read.shard_reader import read_shard
from scaling.data.shards import CorpusIndex

BATCH, SEQ_LENS, SEEKS = 16, (256, 1024, 4096), (10**3, 10**8)
SHUFFLE_BUFFER = 1000
WINDOW_TOKENS = 16_000_000
"""Tokens per litdata chunk. One of our windows mixes as much as 16 shards; litdata's default of 64
MB is about the same."""
Batches = Iterator[tuple[Any, Any]]
Open = Callable[[int], Batches]
"""A function from a sequence number to the batches from there on."""


def scaling_side(directory: str, seq_len: int, scratch: str) -> Open:
    from scaling.data.objective import causal_lm
    from scaling.data.read.loader import Loader
    from scaling.data.read.stream import SequenceStream

    def batches(start: int) -> Batches:
        stream = SequenceStream(
            directory, CorpusIndex.load(directory), "train", seq_len, seed=0, read_ahead=True
        )
        with (
            stream,
            Loader(
                stream,
                make_batch=causal_lm,
                global_batch_size=BATCH,
                dp_rank=0,
                dp=1,
                micro_batch_size=BATCH,
                start_sequence=start,
            ) as loader,
        ):
            for (batch,), _ in loader:
                yield batch.tokens_BT, batch.targets_BT

    return batches


def litdata_side(directory: str, seq_len: int, scratch: str) -> Open:
    from litdata import StreamingDataLoader, StreamingDataset, TokensLoader, optimize

    copy, item_loader = (
        Path(scratch, f"litdata-{seq_len}"),
        partial(TokensLoader, block_size=seq_len + 1),
    )
    n_shards = len(CorpusIndex.load(directory).split("train"))
    per_chunk = WINDOW_TOKENS // (seq_len + 1) * (seq_len + 1)
    optimize(
        partial(_tensors, directory),
        list(range(n_shards)),
        str(copy),
        chunk_size=per_chunk,
        item_loader=item_loader(),
        num_workers=1,
    )

    def opened() -> Any:
        data = StreamingDataset(str(copy), item_loader=item_loader(), shuffle=True, drop_last=True)
        return StreamingDataLoader(data, batch_size=BATCH, num_workers=0), len(data)

    def batches(start: int) -> Batches:
        loader, n_sequences = opened()
        if start:
            state = loader.state_dict()
            epoch, place = divmod(start, n_sequences)
            state["current_epoch"] = state["dataset"]["current_epoch"] = epoch + 1
            state["num_samples_yielded"] = state["dataset"]["num_samples_yielded"] = place
            loader.load_state_dict(state)
        for rows in itertools.chain.from_iterable(itertools.repeat(loader)):
            yield rows[:, :-1].long(), rows[:, 1:].long()

    return batches


def _tensors(directory: str, shard: int) -> Iterator[Any]:
    import torch

    index = CorpusIndex.load(directory)
    yield torch.from_numpy(
        read_shard(directory, index, index.split("train")[shard]).astype(np.int32)
    )


def webdataset_side(directory: str, seq_len: int, scratch: str) -> Open:
    import torch
    import webdataset

    index = CorpusIndex.load(directory)
    urls = [str(Path(directory, shard.name)) for shard in index.split("train")]
    eot = np.array([index.tokenizer.eot_id], dtype=np.uint16)

    def packed(samples: Iterator[dict[str, bytes]]) -> Iterator[np.ndarray]:
        left = eot[:0]
        for sample in samples:
            left = np.concatenate([left, np.frombuffer(sample["u16"], dtype="<u2"), eot])
            whole = len(left) // (seq_len + 1) * (seq_len + 1)
            yield from left[:whole].reshape(-1, seq_len + 1)
            left = left[whole:]

    def batches(start: int) -> Batches:
        data = webdataset.WebDataset(urls, shardshuffle=len(urls), seed=0).repeat().compose(packed)
        rows = data.shuffle(SHUFFLE_BUFFER).batched(BATCH, collation_fn=np.stack)
        for batch in itertools.islice(rows, start // BATCH, None):
            yield (
                torch.from_numpy(batch[:, :-1].astype(np.int64)),
                torch.from_numpy(batch[:, 1:].astype(np.int64)),
            )

    return batches


SIDES = {"scaling": scaling_side, "litdata": litdata_side, "webdataset": webdataset_side}


def serve(pipe: Connection, side: str, directory: str, seq_len: int, scratch: str) -> None:
    """The process of one side. Answers ("run", seconds) with (tokens, CPU s, wall s) and ("seek",
    k) with seconds, until "end"."""
    import torch

    torch.set_num_threads(1)
    open_at = SIDES[side](directory, seq_len, scratch)
    batches = open_at(0)
    # now everything is imported, and buffers are full
    for tokens, targets in itertools.islice(batches, 200):
        assert tokens.shape == targets.shape == (BATCH, seq_len)
        assert tokens.dtype == targets.dtype == torch.int64
        assert torch.equal(tokens[:, 1:], targets[:, :-1])
    pipe.send("ready")
    while (order := pipe.recv()) != "end":
        kind, amount = order
        pipe.send(run(batches, amount) if kind == "run" else seek(open_at, amount))


def run(batches: Batches, seconds: float) -> tuple[int, float, float]:
    n_tokens, begun_s, begun_cpu_s = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - begun_s < seconds:
        for tokens, _ in itertools.islice(batches, 20):
            n_tokens += tokens.numel()
    return n_tokens, time.process_time() - begun_cpu_s, time.perf_counter() - begun_s


def seek(open_at: Open, k: int) -> float:
    begun_s = time.perf_counter()
    batches = open_at(k)
    next(batches)
    return time.perf_counter() - begun_s


def compare(
    directory: str, seq_len: int, sides: list[str], rounds: int, seconds: float
) -> list[list[str]]:
    """One row of the table per side."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as scratch:
        pipes: dict[str, Connection] = {}
        processes = []
        for side in sides:
            pipes[side], theirs = context.Pipe()
            processes.append(
                context.Process(target=serve, args=(theirs, side, directory, seq_len, scratch))
            )
            processes[-1].start()
            theirs.close()
            assert pipes[side].recv() == "ready"
        rates: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
        for _ in range(rounds):
            wait_for_quiet(20.0)
            for side, pipe in pipes.items():
                n_tokens, cpu_s, wall_s = ask(pipe, "run", seconds)
                rates[side].append((n_tokens / cpu_s, n_tokens / wall_s))
        per_core = {side: [rate for rate, _ in found] for side, found in rates.items()}
        others = [max(per_core[side][i] for side in sides[1:]) for i in range(rounds)]
        rows = []
        for side, pipe in pipes.items():
            median, wall = (
                statistics.median(per_core[side]),
                statistics.median(rate for _, rate in rates[side]),
            )
            ratios = [own / other for own, other in zip(per_core[side], others, strict=True)]
            ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            seeks = [seek_text(pipe, side, k, median / seq_len) for k in SEEKS]
            rows.append(
                [str(seq_len), side, f"{median / 1e6:.1f}", f"{wall / 1e6:.1f}", ratio, *seeks]
            )
            pipe.send("end")
        for process in processes:
            process.join()
    return rows


def ask(pipe: Connection, kind: str, amount: float) -> Any:
    pipe.send((kind, amount))
    return pipe.recv()


def seek_text(pipe: Connection, side: str, k: int, sequences_per_s: float) -> str:
    if side == "webdataset" and k > 10**6:
        return f"{k / sequences_per_s / 60:.0f} min, by its rate"
    return f"{1000 * statistics.median(ask(pipe, 'seek', k) for _ in range(5)):.0f} ms"


def default_corpus() -> str:
    cache_dir = os.environ.get("SCALING_CACHE", "~/.cache/scaling")
    data, tokenizer = (
        DataConfig(kind="python_packages", cache_dir=cache_dir),
        TokenizerConfig(kind="bpe", vocab_size=4096),
    )
    return str(
        ensure_corpus(data, tokenizer, lambda message, part: print(message, file=sys.stderr))
    )


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 2.0
    directory = sys.argv[3] if len(sys.argv) > 3 else default_corpus()
    sides = [side for side in SIDES if importlib.util.find_spec(side) is not None]
    if "litdata" not in sides:
        print("litdata is not installed, and left out: pip install litdata", file=sys.stderr)
    columns = (
        "seq_len",
        "side",
        "M tokens/s per core",
        "M tokens/s",
        "to the better of the others",
        "seek to 10^3",
        "seek to 10^8",
    )
    table = Table(*columns)
    for seq_len in SEQ_LENS:
        for row in compare(directory, seq_len, sides, rounds, seconds):
            table.add_row(*row)
    Console(width=140).print(table)
    shards = CorpusIndex.load(directory).split("train")
    n_tokens, n_documents = (
        sum(shard.n_tokens for shard in shards),
        sum(shard.n_documents for shard in shards),
    )
    print(
        f"{n_tokens} tokens in {n_documents} documents and {len(shards)} shards; "
        f"{rounds} rounds of {seconds} s per side"
    )
    versions = [
        f"{name} {importlib.import_module(name).__version__}" for name in ("torch", *sides[1:])
    ]
    print(
        f"{', '.join(versions)}; {platform.machine()}, {os.cpu_count()} CPUs, "
        f"Python {platform.python_version()}"
    )


if __name__ == "__main__":
    main()
