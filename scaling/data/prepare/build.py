"""Build a corpus: documents -> order and split by content -> tokenizer -> shards -> index, the same
bytes every time.

Documents are known by the SHA-256 of their text. It decides the split, so that equal files never
lie on both sides (all but one are removed; empty ones too), and it gives the order in which
documents are written, which is thereby random, and independent of file names. Near duplicates are
not looked for.

What is written depends on the documents, the tokenizer and the size of a shard alone: not on the
number of processes, nor on the pieces, runs and buckets that the work is cut into. Memory is
bounded by those, and by the largest document.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaling.config.run_config import TokenizerConfig
from scaling.data.prepare import ordering
from scaling.data.prepare.by_position import cut_in_two
from scaling.data.prepare.collect import merge_bucket, merge_group, sort_piece
from scaling.data.prepare.encode import encode_bucket
from scaling.data.prepare.left_out import EMPTY, LeftOut
from scaling.data.prepare.ordering import (
    RUN_BYTES,
    Bucket,
    bucket_bounds,
    read_documents,
    remove_documents,
)
from scaling.data.prepare.pieces import Piece, Reading, local_paths
from scaling.data.prepare.sources import BETWEEN
from scaling.data.prepare.tasks import Report, Work, put
from scaling.data.prepare.write_shards import SPLITS, plan_shards, write_shard
from scaling.data.shards import CorpusIndex, ShardInfo, TokenizerInfo
from scaling.data.tokenizer.byte_level import Tokenizer
from scaling.data.tokenizer.existing import hub_tokenizer
from scaling.data.tokenizer.training import train_tokenizer
from scaling.errors import ConfigError
from scaling.runs.files import fsync
from scaling.units import counted, format_bytes, format_count

TOKENIZER_FILE = "tokenizer.json"
WORK = ".work"
"""Folder in the directory of an unfinished corpus: what is done so far."""


@dataclass(frozen=True)
class Recipe:
    """All that the bytes of a corpus are made of, and nothing else.

    `hub`: name or path of a tokenizer that exists, in place of training one. `sample_bytes`: of
    training text, in the order of hashes, that the tokenizer learns from; None: all.
    """

    name: str
    pieces: tuple[Piece, ...]
    tokenizer: TokenizerConfig
    val_fraction: float
    shard_tokens: int
    reading: Reading
    hub: str | None = None
    sample_bytes: int | None = None
    pairs: bool = False
    held_out_by_name: bool = False


def build(recipe: Recipe, directory: Path, processes: int, report: Report) -> CorpusIndex:
    """Write the corpus into `directory`, or finish it there: what an earlier call with this recipe
    left is used.

    Raises ConfigError, DataError or OSError.
    """
    (directory / WORK).mkdir(parents=True, exist_ok=True)
    with Work(directory / WORK, processes, report) as work:
        # before the long work: it may not be there
        if recipe.hub and not (work.directory / TOKENIZER_FILE).exists():
            put(
                work.directory / TOKENIZER_FILE,
                hub_tokenizer(recipe.hub, recipe.tokenizer, report).to_bytes(),
            )
        buckets = _cut_if_one(recipe, work, _ordered(recipe, work, report), report)
        n_held_out = _n_held_out(recipe, buckets)
        trained = _tokenizer(recipe, work, buckets, n_held_out, report)
        encoded = work.run(
            encode_bucket,
            "tokens",
            [(bucket.name, TOKENIZER_FILE, recipe.pairs) for bucket in buckets],
            "tokenising",
        )
        dtype = encoded[0]["dtype"]
        n_documents = [bucket.n_documents for bucket in buckets]
        for text in work.directory.glob("*.text"):
            text.unlink(missing_ok=True)
        shards = {}
        for split in SPLITS:
            plans = plan_shards(work.directory, split, n_documents, n_held_out, recipe.shard_tokens)
            arguments = [
                (str(directory), f"{split}-{number:06d}.tar", dtype, plan)
                for number, plan in enumerate(plans)
            ]
            written = work.run(write_shard, split, arguments, f"writing the {split} shards")
            shards[split] = tuple(ShardInfo(**shard) for shard in written)
    return _finish(recipe, directory, dtype, trained, shards)


def _finish(
    recipe: Recipe,
    directory: Path,
    dtype: str,
    trained: Tokenizer,
    shards: dict[str, tuple[ShardInfo, ...]],
) -> CorpusIndex:
    """The index last: a directory without one is no corpus."""
    content = (directory / WORK / TOKENIZER_FILE).read_bytes()
    (directory / TOKENIZER_FILE).write_bytes(content)
    kind = trained.kind if recipe.hub else recipe.tokenizer.kind
    info = TokenizerInfo(
        TOKENIZER_FILE,
        hashlib.sha256(content).hexdigest(),
        trained.vocab_size,
        trained.eot_id,
        kind,
    )
    index = CorpusIndex(name=recipe.name, dtype=dtype, tokenizer=info, splits=shards)
    index.save(directory)
    shutil.rmtree(directory / WORK)
    # its files, then their names
    for path in [*directory.iterdir(), directory]:
        fsync(path)
    return index


def written_text(index: CorpusIndex) -> str:
    """The end of the work, in a line."""
    n_tokens = {
        split: format_count(sum(shard.n_tokens for shard in shards))
        for split, shards in index.splits.items()
    }
    return f"wrote {n_tokens['train']} tokens for training, {n_tokens['val']} held out"


def _ordered(recipe: Recipe, work: Work, report: Report) -> list[Bucket]:
    """Read every piece, and bring the documents into order. The runs are removed when no bucket
    needs them any more."""
    arguments = [(piece, recipe.reading) for piece in recipe.pieces]
    n_files = len(local_paths(recipe.pieces))
    message = f"reading {counted(n_files, 'file')}" if n_files else "reading"
    read = work.run(sort_piece, "run", arguments, message)
    _report_unfit(read, report)
    empty = _empty_files(recipe, read)
    if not recipe.name.startswith("python_"):  # a library's many empty modules are no news
        for line in empty.lines():
            report(line, None)
    n_bytes = sum(result["n_bytes"] for result in read)
    runs = _few(work, [run for result in read for run in result["runs"]])
    n_buckets = max(1, -(-n_bytes // RUN_BYTES))
    low = int(recipe.val_fraction * 2**64)
    ordered = work.run(
        merge_bucket,
        "bucket",
        [(runs, bucket_bounds(number, n_buckets), low) for number in range(n_buckets)],
        "ordering",
    )
    buckets = [Bucket(**bucket) for bucket in ordered]
    n_read, n_kept = (
        sum(result["n_documents"] for result in read),
        sum(bucket.n_documents for bucket in buckets),
    )
    n_empty = sum(result["n_empty"] for result in read)
    if not n_read:
        raise ConfigError(
            "; ".join(["there is no text to read", *empty.lines()]),
            fix="Give files that hold text.",
        )
    report(kept_text(n_kept, n_read - n_kept, n_empty), None)
    for run in runs:
        remove_documents(work.directory, run)
    return buckets


def kept_text(n_kept: int, n_duplicates: int, n_empty: int) -> str:
    """What is kept, and what is not where anything is not."""
    left_out = [
        counted(number, noun)
        for number, noun in ((n_duplicates, "exact duplicate"), (n_empty, "empty one"))
        if number
    ]
    kept = counted(n_kept, "document")
    return f"{kept}, without {' and '.join(left_out)}" if left_out else kept


def _cut_if_one(recipe: Recipe, work: Work, buckets: list[Bucket], report: Report) -> list[Bucket]:
    """Where the source is one document, its beginning and its end. A pair stays whole."""
    if (
        recipe.held_out_by_name
        or recipe.pairs
        or sum(bucket.n_documents for bucket in buckets) != 1
    ):
        return buckets
    (whole,) = (bucket for bucket in buckets if bucket.n_documents)
    (found,) = work.run(cut_in_two, "cut", [(whole.name, recipe.val_fraction)], "cutting")
    if found["n_documents"] == 2:
        report(
            f"one document: the last {recipe.val_fraction:.3g} of it, by position, is held out",
            None,
        )
    return [Bucket(**found)]


def _few(work: Work, runs: list[str]) -> list[str]:
    """No more than FAN_IN runs of the same documents."""
    level = 0
    while len(runs) > ordering.FAN_IN:
        level += 1
        groups = [
            runs[begin : begin + ordering.FAN_IN] for begin in range(0, len(runs), ordering.FAN_IN)
        ]
        merged = work.run(merge_group, f"merged{level}", [(group,) for group in groups], "merging")
        for run in runs:
            remove_documents(work.directory, run)
        runs = [result["run"] for result in merged]
    return runs


def _report_unfit(read: list[dict[str, Any]], report: Report) -> None:
    n_unfit = sum(result["n_unfit"] for result in read)
    if n_unfit:
        first = next(result["unfit"] for result in read if result["unfit"])
        report(
            f"left out {counted(n_unfit, 'document')} that cannot be read; the first: {first}", None
        )


def _empty_files(recipe: Recipe, read: list[dict[str, Any]]) -> LeftOut:
    """The files that were read to their end, and in which no document is that can be, or no text in
    one."""
    found = LeftOut()
    counts: Counter[str] = Counter()
    for piece, result in zip(recipe.pieces, read, strict=True):
        if piece.format == "files":
            for location in result["empty"]:
                found.add(EMPTY, location)
        else:
            counts[piece.locations[0]] += result["n_documents"] + result["n_unfit"]
    for location, n_documents in counts.items():
        if not n_documents:
            found.add(EMPTY, location)
    return found


def _n_held_out(recipe: Recipe, buckets: list[Bucket]) -> list[int]:
    """Documents of each bucket, the first in it, that are held out: those of named files, or by the
    lowest hashes.

    By hash at least one document is on each side. Raises ConfigError when a side has none.
    """
    if recipe.held_out_by_name:
        counts = [bucket.n_held_out for bucket in buckets]
        n_train = sum(bucket.n_documents for bucket in buckets) - sum(counts)
        if not n_train or not sum(counts):
            side, key = ("train on", "data.path") if not n_train else ("hold out", "data.val_path")
            raise ConfigError(
                f"no text is left to {side}",
                key,
                "Give non-empty files that are not the same on both sides.",
            )
        return counts
    n_documents = sum(bucket.n_documents for bucket in buckets)
    if n_documents < 2:
        raise ConfigError(
            f"the source has {n_documents} distinct non-empty document(s), too little to train "
            "on and to hold out",
            fix="Give more text.",
        )
    n_left = min(max(sum(bucket.n_low for bucket in buckets), 1), n_documents - 1)
    counts = []
    for bucket in buckets:
        counts.append(min(n_left, bucket.n_documents))
        n_left -= counts[-1]
    return counts


def _tokenizer(
    recipe: Recipe, work: Work, buckets: list[Bucket], n_held_out: list[int], report: Report
) -> Tokenizer:
    """That of an earlier call or the one named, which is there, or one trained on the first
    documents to train on."""
    path = work.directory / TOKENIZER_FILE
    if path.exists():
        return Tokenizer.from_bytes(path.read_bytes())
    n_bytes = sum(bucket.n_bytes for bucket in buckets)
    size = n_bytes if recipe.sample_bytes is None else min(n_bytes, recipe.sample_bytes)
    report(f"training the tokenizer on {format_bytes(size)}", None)
    tokenizer = train_tokenizer(
        recipe.tokenizer, _sample(recipe, work.directory, buckets, n_held_out)
    )
    put(path, tokenizer.to_bytes())
    return tokenizer


def _sample(
    recipe: Recipe, directory: Path, buckets: list[Bucket], n_held_out: list[int]
) -> Iterator[str]:
    """Texts to train on in the order of their hashes, until their size is enough; of pairs, the
    sides."""
    size = 0
    for bucket, first in zip(buckets, n_held_out, strict=True):
        for content in read_documents(directory, bucket.name, first):
            if recipe.sample_bytes is not None and size >= recipe.sample_bytes:
                return
            size += len(content)
            text = content.decode()
            yield from text.split(BETWEEN) if recipe.pairs else (text,)
