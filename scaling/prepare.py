"""`python -m scaling.prepare`: text in files of many kinds -> a directory of shards for
`data=shards data.path=DIR`."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from scaling.commands.options import run_command
from scaling.config.paths import split_paths, split_words
from scaling.config.run_config import TokenizerConfig
from scaling.config.section import Count, Section
from scaling.config.spelling import plain_message
from scaling.screen import Column, FittedTable, print_items
from scaling.units import format_bytes, format_count, format_duration

if TYPE_CHECKING:
    from scaling.data.shards import CorpusIndex

USAGE = """\
Usage: python -m scaling.prepare inputs='GLOB,FOLDER,...' out=DIR [KEY=VALUE ...]

Writes the documents of the inputs as tokenised shards: exact duplicates once, some held out, in an order that only their
text fixes. Killed, the same command goes on where it ended. Afterwards: python -m scaling.run data=shards data.path=DIR

  python -m scaling.prepare inputs='books/**/*.txt' out=shards/books tokenizer=bpe vocab_size=8192
  python -m scaling.prepare inputs='c4/*.json.gz,wiki/*.parquet' out=shards/mix tokenizer=hf:openai-community/gpt2
  python -m scaling.prepare inputs=~/src/project out=shards/project tokenizer=byte processes=4
  python -m scaling.prepare inputs=hf:HuggingFaceFW/fineweb-edu:sample-10BT max_files=2 out=shards/web tokenizer=bpe

"""

_VOCAB_SIZE = 4096  # as in conf/tokenizer/bpe.yaml


def _paths(value: Any) -> Any:
    return split_paths(value) if isinstance(value, str) else value


def _words(value: Any) -> Any:
    return (
        tuple(word for word in split_words(value) if word.strip(" .*"))
        if isinstance(value, str)
        else value
    )


Paths = Annotated[tuple[str, ...], BeforeValidator(_paths)]
Words = Annotated[tuple[str, ...], BeforeValidator(_words)]


class PrepareOptions(Section):
    inputs: Paths = Field(
        min_length=1,
        description="with commas between: globs, folders, URLs ({000..999} is a range) and data sets of the hub, "
        "hf:OWNER/NAME[@REVISION][:SUBSET][/GLOB]; of .txt (one document a file), .jsonl and .txt lines (.gz, .zst too), "
        ".parquet, webdataset .tar; of a folder every source file",
    )
    max_files: int | None = Field(None, gt=0, description="of each input, the first so many files")
    out: str = Field(description="directory of the shards; made, or continued")
    tokenizer: str = Field(
        "bpe",
        description="byte, bpe, wordpiece or unigram, learnt here; hf:NAME: one of the hub, or a path to a tokenizer.json",
    )
    vocab_size: Count | None = Field(
        None, gt=0, description=f"entries of a learnt vocabulary; default: {_VOCAB_SIZE}"
    )
    special_tokens: Literal["eot", "all"] = Field(
        "eot", description="all: padding, class, separator and mask too"
    )
    n_sentinels: int = Field(
        0, ge=0, description="tokens that stand for hidden spans (objective=span_corruption)"
    )
    tokenizer_sample: Count = Field(
        "100M", gt=0, validate_default=True, description="bytes of text it is learnt from, at most"
    )
    val_fraction: float = Field(
        0.05, gt=0, lt=0.5, description="part of the documents held out, by hash"
    )
    shard_tokens: Count = Field(
        "1M", gt=0, validate_default=True, description="tokens in a shard, about"
    )
    document: Literal["file", "line"] = Field(
        "file", description="what is a document in .txt files"
    )
    field: str = Field("text", description="the text in JSON objects and parquet rows")
    member: str = Field("txt", description="extension of the texts in tars; json: its field")
    suffixes: Words | None = Field(
        None,
        description="endings of files to read in folders, as .py,.jsonl; default: those of known languages",
    )
    on_bad: Literal["fail", "skip"] = Field(
        "fail", description="documents that are not UTF-8 or JSON, or too long: fail, or skip"
    )
    max_document: Count = Field(
        "64M", gt=0, validate_default=True, description="bytes of the longest document"
    )
    processes: int = Field(0, ge=0, description="processes at work; 0: as many as there are cores")

    @model_validator(mode="after")
    def _tokenizer(self) -> Self:
        try:
            self.tokenizer_config()
        except ValidationError as error:
            raise ValueError(plain_message(error.errors()[0]["msg"])) from error
        if self.hub is not None and self.vocab_size is not None:
            raise ValueError(
                f"vocab_size={self.vocab_size} is for a tokenizer learnt here; {self.tokenizer} has its own"
            )
        return self

    @property
    def hub(self) -> str | None:
        """Name or path of a tokenizer that exists."""
        return self.tokenizer.removeprefix("hf:") if self.tokenizer.startswith("hf:") else None

    def tokenizer_config(self) -> TokenizerConfig:
        """With a tokenizer that exists, the special tokens alone are of interest. Raises pydantic's
        ValidationError."""
        n_special = (5 if self.special_tokens == "all" else 1) + self.n_sentinels
        kind, size = ("byte", None) if self.hub is not None else (self.tokenizer, self.vocab_size)
        default = 256 + n_special if kind == "byte" else _VOCAB_SIZE
        values = {"kind": kind, "vocab_size": size or default}
        return TokenizerConfig.model_validate(
            values | {"special_tokens": self.special_tokens, "n_sentinels": self.n_sentinels}
        )


def prepare(options: PrepareOptions) -> None:
    """Build or finish the corpus, and say what it is. Raises ScalingError."""
    from scaling.commands.progress import ProgressBar
    from scaling.data.prepare.build import Recipe
    from scaling.data.prepare.formats import SOURCE_SUFFIXES
    from scaling.data.prepare.inputs import find_pieces
    from scaling.data.prepare.pieces import Reading
    from scaling.data.prepare.resume import build_or_finish, noted_commits
    from scaling.data.prepare.tasks import n_cores

    begun_s = time.perf_counter()
    commits = noted_commits(options.out)
    with ProgressBar() as bar:
        recipe = Recipe(
            name="prepared",  # the same bytes in every directory
            pieces=find_pieces(
                options.inputs,
                by_line=options.document == "line",
                suffixes=options.suffixes or SOURCE_SUFFIXES,
                skip_bad=options.on_bad == "skip",
                max_files=options.max_files,
                commits=commits,
                report=bar.report,
            ),
            tokenizer=options.tokenizer_config(),
            hub=options.hub,
            val_fraction=options.val_fraction,
            shard_tokens=options.shard_tokens,
            reading=Reading(options.field, options.member, options.max_document),
            sample_bytes=options.tokenizer_sample,
        )
        index, fresh = build_or_finish(
            recipe, options.out, options.processes or n_cores(), bar.report, commits=commits
        )
    _conclude(options.out, index, time.perf_counter() - begun_s if fresh else None)


def _conclude(out: str, index: CorpusIndex, seconds: float | None) -> None:
    """Counts, speed (where nothing had been done before), and how the corpus is used."""
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
    lines = [
        f"{format_bytes(n_bytes)} of text, {n_bytes / total:.2f} bytes a token; fingerprint {index.fingerprint[:16]}"
    ]
    if seconds is not None:
        lines.append(f"Took {format_duration(seconds)}: {format_count(total / seconds)} tokens/s")
    print_items([table, *lines])
    info = index.tokenizer
    print(
        f"Use: data=shards data.path={shlex.quote(out)} tokenizer={info.kind} tokenizer.vocab_size={info.vocab_size}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0; 2 for a wrong option, input or directory; 130 interrupted; 1 for anything
    else."""
    return run_command(PrepareOptions, prepare, USAGE, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
