"""The KEY=VALUE words of `scaling.prepare`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from scaling.config.paths import split_paths, split_words
from scaling.config.run_config import TokenizerConfig
from scaling.config.section import Count, Section
from scaling.config.spelling import plain_message

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
    """What `python -m scaling.prepare` is asked."""

    inputs: Paths = Field(
        min_length=1,
        description="with commas between: globs, folders, URLs ({000..999} is a range) and data "
        "sets of the hub, hf:OWNER/NAME[@REVISION][:SUBSET][/GLOB]; "
        "of .txt (one document a file), .jsonl and .txt lines (.gz, .zst too), .parquet, "
        "webdataset .tar; of a folder every source file",
    )
    max_files: int | None = Field(
        None, gt=0, description="number of files taken of each input, the first ones"
    )
    out: str = Field(description="directory of the shards; made, or continued")
    tokenizer: str = Field(
        "bpe",
        description="byte, bpe, wordpiece or unigram, learnt here; "
        "hf:NAME: one of the hub, or a path to a tokenizer.json",
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
        "1M", gt=0, validate_default=True, description="approximate tokens per shard"
    )
    document: Literal["file", "line"] = Field(
        "file", description="what is a document in .txt files"
    )
    val_path: Paths | None = Field(
        None,
        description="what to hold out, named as in inputs; "
        "default: a part of the documents, by hash",
    )
    field: str = Field("text", description="the text in JSON objects and parquet rows")
    member: str = Field("txt", description="extension of the texts in tars; json: its field")
    suffixes: Words | None = Field(
        None,
        description="endings of files to read in folders, as .py,.jsonl; "
        "default: those of known languages",
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
                f"vocab_size={self.vocab_size} is for a tokenizer learnt here; "
                f"{self.tokenizer} has its own"
            )
        return self

    @model_validator(mode="after")
    def _held_out(self) -> Self:
        if self.val_path == ():
            raise ValueError("val_path names nothing")
        if self.val_path and "val_fraction" in self.model_fields_set:
            raise ValueError(
                f"val_fraction={self.val_fraction} is set, but nothing reads it where val_path "
                "says what is held out"
            )
        return self

    @property
    def hub(self) -> str | None:
        """Name or path of a tokenizer that exists."""
        return self.tokenizer.removeprefix("hf:") if self.tokenizer.startswith("hf:") else None

    def tokenizer_config(self) -> TokenizerConfig:
        """The tokenizer section. Where a tokenizer exists, only its special tokens count. Raises
        pydantic's ValidationError."""
        n_special = (5 if self.special_tokens == "all" else 1) + self.n_sentinels
        kind, size = ("byte", None) if self.hub is not None else (self.tokenizer, self.vocab_size)
        default = 256 + n_special if kind == "byte" else _VOCAB_SIZE
        values = {"kind": kind, "vocab_size": size or default}
        return TokenizerConfig.model_validate(
            values | {"special_tokens": self.special_tokens, "n_sentinels": self.n_sentinels}
        )
