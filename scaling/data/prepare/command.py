"""A corpus by the options of `scaling.prepare`, and the summary that is printed in the end."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from dataclasses import replace

from scaling.data.prepare.build import Recipe
from scaling.data.prepare.formats import SOURCE_SUFFIXES
from scaling.data.prepare.inputs import find_pieces
from scaling.data.prepare.options import PrepareOptions
from scaling.data.prepare.pieces import Piece, Reading
from scaling.data.prepare.resume import build_or_finish, noted_commits
from scaling.data.prepare.tasks import Report, n_cores
from scaling.data.shards import CorpusIndex
from scaling.screen import Column, FittedTable
from scaling.units import format_bytes, format_count, format_duration


def prepare(options: PrepareOptions, report: Report) -> tuple[CorpusIndex, float | None]:
    """Build or finish the corpus. Returns its index, and the seconds that took where nothing had
    been done before.

    Raises ScalingError.
    """
    begun_s = time.perf_counter()
    commits = noted_commits(options.out)
    recipe = Recipe(
        name="prepared",  # the same bytes in every directory
        pieces=_pieces(options, commits, report),
        tokenizer=options.tokenizer_config(),
        hub=options.hub,
        val_fraction=options.val_fraction,
        shard_tokens=options.shard_tokens,
        reading=Reading(options.field, options.member, options.max_document),
        sample_bytes=options.tokenizer_sample,
        held_out_by_name=options.val_path is not None,
    )
    index, fresh = build_or_finish(
        recipe, options.out, options.processes or n_cores(), report, commits=commits
    )
    return index, time.perf_counter() - begun_s if fresh else None


def _pieces(options: PrepareOptions, commits: dict[str, str], report: Report) -> tuple[Piece, ...]:
    """The pieces of the inputs, and those that are held out by name."""
    found: tuple[Piece, ...] = ()
    for inputs, held_out in ((options.inputs, False), (options.val_path or (), True)):
        if inputs:
            pieces = find_pieces(
                inputs,
                by_line=options.document == "line",
                suffixes=options.suffixes or SOURCE_SUFFIXES,
                skip_bad=options.on_bad == "skip",
                max_files=options.max_files,
                commits=commits,
                report=report,
            )
            found += (
                tuple(replace(piece, held_out=True) for piece in pieces) if held_out else pieces
            )
    return found


def summary(out: str, index: CorpusIndex, seconds: float | None) -> Iterator[str | FittedTable]:
    """Counts, speed, and the words with which a run uses the corpus."""
    n_bytes = sum(shard.n_bytes for shards in index.splits.values() for shard in shards)
    total = sum(shard.n_tokens for shards in index.splits.values() for shard in shards)
    columns = (Column("part", left=True), Column("tokens"), Column("documents"), Column("shards"))
    table = FittedTable(columns, f"Corpus in {out}")
    for split, shards in index.splits.items():
        counts = (
            sum(shard.n_tokens for shard in shards),
            sum(shard.n_documents for shard in shards),
            len(shards),
        )
        table.add(split, *(f"{count:,}" for count in counts))
    yield table
    yield (
        f"{format_bytes(n_bytes)} of text, {n_bytes / total:.2f} bytes a token; "
        f"fingerprint {index.fingerprint[:16]}"
    )
    if seconds is not None:
        yield f"Took {format_duration(seconds)}: {format_count(total / seconds)} tokens/s"
    info = index.tokenizer
    yield (
        f"Use: data=shards data.path={shlex.quote(out)} tokenizer={info.kind} "
        f"tokenizer.vocab_size={info.vocab_size}"
    )
