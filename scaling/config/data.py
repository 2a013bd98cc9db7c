"""Where text comes from and how it is cut into tokens: groups `data` and `tokenizer`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from scaling.config.recorded import RECORDED
from scaling.config.section import LONGEST_S, Count, Section, at_most, unread
from scaling.config.spelling import plain_message

HOW_DATA_COMES = (
    "cache_dir",
    "on_bad_shard",
    "loader_workers",
    "stream_cache_bytes",
    "stall_after_s",
    "give_up_s",
)
"""Keys of `data` that change nothing of what is learnt."""


Kind = Literal[
    "python_stdlib", "python_packages", "text_files", "text_pairs", "documents", "shards", "mixture"
]
NEEDS_PATH = ("text_files", "text_pairs", "documents", "shards")
_PREPARED_HERE = ("python_stdlib", "python_packages", "text_files", "text_pairs", "documents")
_READ_BY: dict[str, tuple[str, ...]] = {
    "path": NEEDS_PATH,
    "components": ("mixture",),
    "field": ("documents", "mixture"),
    "max_files": ("documents",),
    "target_path": ("text_pairs",),
    "val_target_path": ("text_pairs",),
    "val_path": _PREPARED_HERE,
    "val_fraction": (*_PREPARED_HERE, "mixture"),
    "shard_tokens": (*_PREPARED_HERE, "mixture"),
}
"""Keys that only some kinds read. Set to anything but its default, any other kind refuses one."""


_Weight = Annotated[float, at_most(1e9, "and weights are parts of their sum")]


class ComponentConfig(Section):
    """One of several corpora that are mixed; what it does not say is as in the section around
    it."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", description="in metrics: data/share/NAME"
    )
    weight: _Weight = Field(
        gt=0, description="part of the sequences that come from it, over the sum of all weights"
    )
    kind: Literal["python_stdlib", "python_packages", "text_files", "documents", "shards"] = Field(
        description="as data.kind"
    )
    path: str | None = Field(None, description="as data.path")
    field: str | None = Field(None, description="as data.field")
    max_files: int | None = Field(None, gt=0, description="as data.max_files")
    val_path: str | None = Field(None, description="as data.val_path")


class DataConfig(Section):
    """Where text comes from, and where its shards are kept."""

    kind: Kind = Field(
        description="python_stdlib: sources of this interpreter's standard library; "
        "python_packages: of all that is installed beside it; text_files: a glob; "
        "text_pairs: lines of source TAB target; documents: whatever scaling.prepare reads; "
        "shards: prepared before; mixture: several of these"
    )
    path: str | None = Field(
        None,
        description="text_files, text_pairs: a glob of UTF-8 files; "
        "documents: globs, folders, URLs and hf: names, with commas between; "
        "shards: a directory or URL with index.json",
    )
    components: tuple[ComponentConfig, ...] | None = Field(
        None, description="mixture: [{name: ..., weight: ..., kind: ..., path: ...}, ...]"
    )
    field: str = Field("text", description="documents: the text in JSON objects and parquet rows")
    max_files: int | None = Field(
        None,
        gt=0,
        description="documents: number of files taken of each input, the first ones",
    )
    target_path: str | None = Field(
        None,
        description="text_pairs: a file whose lines are the targets of those of data.path; "
        "null: they follow a TAB there",
    )
    val_path: str | None = Field(
        None,
        description="what to hold out, named as in data.path; "
        "null: some of the documents, by hash (one: its end)",
    )
    val_target_path: str | None = Field(
        None,
        description="text_pairs: the targets of data.val_path, where it is a file of its own; "
        "null: they follow a TAB",
    )
    cache_dir: str = Field(
        description="where prepared corpora are kept; prepared once, shared by all runs"
    )
    val_fraction: float = Field(
        0.05, gt=0, lt=0.5, description="part of the documents held out, by hash"
    )
    shard_tokens: Count = Field(1_000_000, gt=0, description="approximate tokens per shard")
    attend_across_documents: bool = Field(
        True,
        description="whether positions see documents before their own, where several share a "
        "sequence",
    )
    on_bad_shard: Literal["fail", "skip"] = Field(
        "fail",
        description="a missing or damaged shard: fail, or skip it and record that (every shard is "
        "read once at the start)",
    )
    loader_workers: int = Field(
        1, gt=0, le=1024, description="threads of each rank that read sequences and make batches"
    )
    stream_cache_bytes: Count = Field(
        20_000_000_000,
        ge=0,
        description="of remote shards kept in data.cache_dir, at most, by all ranks of a machine; "
        "0: none",
    )
    stall_after_s: float = Field(
        30.0,
        gt=0,
        le=LONGEST_S,
        description="a step that waits longer for its shards is reported, with their names",
    )
    give_up_s: float = Field(
        300.0,
        gt=0,
        le=LONGEST_S,
        description="of retries and waits for one remote shard, until the run fails",
    )

    @field_validator("cache_dir")
    @classmethod
    def _cache_dir(cls, value: str) -> str:
        if not value.strip():
            raise ValueError(
                "it is blank, and corpora would be written into the current folder; "
                "give a directory"
            )
        return value

    @model_validator(mode="after")
    def _path(self, info: ValidationInfo) -> Self:
        if self.kind in NEEDS_PATH and not self.path:
            raise ValueError(f"data={self.kind} needs data.path")
        if info.context != RECORDED:
            self._check_read()
        if self.val_target_path and not self.val_path:
            raise ValueError(
                "data.val_target_path is set, and data.val_path, whose targets it holds, is not"
            )
        if (
            self.kind == "text_pairs"
            and self.val_path
            and bool(self.target_path) != bool(self.val_target_path)
        ):
            has, lacks = ("data.val_target_path", "data.target_path")[
                :: -1 if self.target_path else 1
            ]
            raise ValueError(
                f"{has} is set and {lacks} is not: give the targets of both in files of their own, "
                "or of neither"
            )
        return self

    def _check_read(self) -> None:
        """Raises ValueError for a key that is set and that nothing would read."""
        for key, kinds in _READ_BY.items():
            if message := unread(self, "data", key, kinds):
                raise ValueError(message)
        if self.val_path and self.val_fraction != type(self).model_fields["val_fraction"].default:
            raise ValueError(
                f"data.val_fraction={self.val_fraction} is set, but nothing reads it where "
                "data.val_path says what is held out"
            )

    @model_validator(mode="after")
    def _components(self) -> Self:
        if self.kind != "mixture":
            return self
        if not self.components:
            raise ValueError(
                "data=mixture needs data.components, a list of {name, weight, kind, path}"
            )
        names = [component.name for component in self.components]
        if len(set(names)) < len(names):
            raise ValueError(f"data.components has two of one name: {', '.join(names)}")
        self.component_sections()  # each is validated as if it were used alone
        return self

    def component_sections(self) -> dict[str, DataConfig]:
        """The corpora of a mixture by name, each as if it were used alone. Raises ValueError for
        one that could not be."""
        found: dict[str, DataConfig] = {}
        for component in self.components or ():
            shared = {
                key: value
                for key, value in self
                if component.kind in _READ_BY.get(key, (component.kind,))
            }
            own = component.model_dump(exclude={"name", "weight"}, exclude_none=True)
            if component.val_path:
                shared.pop("val_fraction")
            try:
                found[component.name] = DataConfig.model_validate(
                    shared | {"path": None, "max_files": None} | own
                )
            except ValidationError as error:
                message = plain_message(error.errors()[0]["msg"])
                raise ValueError(
                    f"component {component.name} of data.components: {message}"
                ) from error
        return found


class TokenizerConfig(Section):
    kind: Literal["bpe", "byte", "wordpiece", "unigram", "hf"] = Field(
        description="bpe, wordpiece, unigram: pieces of words, learnt from the corpus over bytes; "
        "byte: one token a byte; hf: one that exists"
    )
    vocab_size: Count = Field(
        gt=0,
        lt=2**31,
        description="entries of the vocabulary, special tokens included; "
        "of an hf tokenizer scaling.prepare tells them",
    )
    name: str | None = Field(
        None,
        description="hf: name on the Hugging Face hub, or path of a tokenizer.json or its folder",
    )
    special_tokens: Literal["eot", "all", "own"] = Field(
        "eot",
        description="eot: end-of-text alone; all: padding, class, separator and mask too; "
        "own: those of an hf tokenizer itself",
    )
    lossy: Literal["refuse", "allow"] = Field(
        "refuse",
        description="hf: a tokenizer that does not give every text back, "
        "as one without some control characters",
    )
    n_sentinels: int = Field(
        0,
        ge=0,
        lt=2**31,
        description="tokens that stand for hidden spans (objective=span_corruption)",
    )

    @property
    def n_special(self) -> int:
        """Special tokens: end-of-text, with special_tokens=all four more, and the sentinels."""
        return (5 if self.special_tokens == "all" else 1) + self.n_sentinels

    @model_validator(mode="after")
    def _size(self) -> Self:
        if (self.kind == "hf") != bool(self.name):
            fix = "needs tokenizer.name" if self.kind == "hf" else "has no use for tokenizer.name"
            raise ValueError(
                f"tokenizer={self.kind} {fix}, a name on the hub or a path, "
                "as tokenizer=hf:openai-community/gpt2"
            )
        if self.kind == "hf":
            return self
        if self.lossy == "allow":
            raise ValueError(
                f"lossy=allow is for tokenizer=hf, and tokenizer={self.kind} gives every text back"
            )
        if self.special_tokens == "own":
            raise ValueError(
                f"special_tokens=own is for tokenizer=hf, and tokenizer={self.kind} is learnt: "
                "use eot or all"
            )
        alphabet = 512 if self.kind == "wordpiece" else 256
        least = alphabet + self.n_special
        if self.vocab_size < least:
            what = (
                "256 bytes, at the start and inside of a word,"
                if self.kind == "wordpiece"
                else "256 bytes"
            )
            raise ValueError(
                f"vocab_size={self.vocab_size} is too small: {what} and {self.n_special} special "
                f"token(s) need {least}"
            )
        if self.kind == "byte" and self.vocab_size != least:
            raise ValueError(
                f"vocab_size={self.vocab_size}, but tokenizer=byte has exactly {least} entries"
            )
        return self
