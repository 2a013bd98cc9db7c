"""What can be known of a run's data before it holds anything: that they are there, and long enough
for one sequence."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from scaling.config.paths import exists, oddity, plain, split_paths
from scaling.config.run_config import DataConfig, RunConfig, TokenizerConfig
from scaling.data.corpus import EVAL_SPLIT, Corpus, Part
from scaling.data.io.fetch import local_path
from scaling.data.io.remote import is_remote
from scaling.data.mixture import Mixture
from scaling.data.prepare.cached import ensure_corpus
from scaling.data.prepare.inputs import local_files, named_by
from scaling.data.prepare.sources import find_source
from scaling.data.shards import INDEX_FILE
from scaling.data.tokenizer.existing import hub_tokenizer
from scaling.errors import ConfigError
from scaling.planner.cost.lengths import Lengths, lengths
from scaling.units import counted

_SMALLEST_FIX, _LARGEST_FIX = 2.0, 0.45
"""Times the present data.val_fraction, and up to which one is proposed. Choices."""


def check_inputs(config: RunConfig) -> None:
    """Whether every path of this machine that the data name is there; what is behind URLs is not
    asked.

    Shards of this machine are opened, too. Raises ConfigError, DataError.
    """
    _check_tokenizer(config.tokenizer)
    for data in (config.data, *config.data.component_sections().values()):
        _check_there(data)
        if data.kind == "shards":
            assert data.path is not None
            if local_path(data.path) is not None:
                found = ensure_corpus(data, config.tokenizer)
                if data is config.data:
                    check_lengths(config, Corpus.open(found))
        elif data.kind == "documents":
            _check_documents("data.path", data.path)
            _check_documents("data.val_path", data.val_path)
        elif data.kind in ("text_files", "text_pairs") or data.val_path:
            find_source(data)


def _check_there(data: DataConfig) -> None:
    """Raises ConfigError for a link to nothing, and for a folder of shards that is none."""
    for key in ("path", "val_path", "target_path", "val_target_path"):
        value = getattr(data, key)
        odd = oddity(plain(value)) if value and exists(value) else None
        if odd is not None:
            raise ConfigError(
                f"data.{key}={value!r} {odd}", f"seen from {Path.cwd()}", "Give a file or a folder."
            )
    folder = local_path(data.path) if data.kind == "shards" and data.path else None
    if folder is None:
        return
    with contextlib.suppress(PermissionError):  # which reading the index reports
        if (folder / INDEX_FILE).exists():
            return
        lacks = f"has no {INDEX_FILE}" if folder.exists() else "is not there"
        raise ConfigError(
            f"data.path={data.path!r} {lacks}",
            f"seen from {Path.cwd()}",
            "Give a folder that python -m scaling.prepare has finished.",
        )


def _check_documents(key: str, inputs: str | None) -> None:
    """Raises ConfigError for inputs of this machine that match nothing or empty files alone, by the
    key that names them."""
    texts = split_paths(inputs or "")
    local = [text for text in texts if not is_remote(text)]
    with named_by(key):
        files = [path for text in local for path in local_files([text])]
    # an empty parquet file or tar has bytes: preparing the corpus finds those
    if len(local) == len(texts) and files and not any(path.stat().st_size for path in files):
        raise ConfigError(
            f"there is nothing to read: {counted(len(files), 'file')} without a byte, the first of "
            f"them {files[0]}",
            f"{key}={inputs}",
            "Name files, or folders that hold sources.",
        )


def _check_tokenizer(tokenizer: TokenizerConfig) -> None:
    """Raises ConfigError for a path that is not there; a name of the hub is none."""
    name = tokenizer.name or ""
    if name.startswith(("/", "~", "./", "../", "file:")) and (
        not exists(name) or oddity(plain(name)) is not None
    ):
        raise ConfigError(
            f"tokenizer.name={name!r} is not there",
            f"seen from {Path.cwd()}",
            "Give a tokenizer.json or its folder.",
        )


def check_tokenizer(config: RunConfig, corpus: Corpus) -> None:
    """Raises ConfigError where a run begins with trained weights and its corpus has tokens of
    another tokenizer: a vocabulary of the same size would pass, and every token mean another."""
    if config.init_from.source is None or config.tokenizer.name is None:
        return
    content = hub_tokenizer(config.tokenizer.name, config.tokenizer).to_bytes()
    wanted = hashlib.sha256(content).hexdigest()
    for part in corpus.parts:
        if part.index.tokenizer.sha256 != wanted:
            raise ConfigError(
                f"the tokens of {part.component.location} are not those of "
                f"init_from={config.init_from.source}",
                f"data={config.data.kind}",
                f"Prepare the text with its tokenizer: tokenizer=hf:{config.tokenizer.name}.",
            )


def check_lengths(config: RunConfig, corpus: Corpus) -> None:
    """Raises ConfigError where a split is too short for one sequence, with its numbers and the key
    that made it so."""
    shape = lengths(config)
    for part in corpus.parts:
        if not part.index.n_sequences("train", shape.stride, shape.overlap):
            raise _too_short(config, corpus, part, "train", shape)
    counts = [
        part.index.n_sequences(EVAL_SPLIT, shape.stride, shape.overlap) for part in corpus.parts
    ]
    weights = [part.component.weight for part in corpus.parts]
    if not (
        Mixture(weights, config.train.seed).sequences_within(counts) if corpus.mixed else counts[0]
    ):
        raise _too_short(config, corpus, corpus.parts[counts.index(min(counts))], EVAL_SPLIT, shape)


def _too_short(
    config: RunConfig, corpus: Corpus, part: Part, split: str, shape: Lengths
) -> ConfigError:
    shards = part.index.split(split)
    n_tokens, longest = (
        sum(shard.n_tokens for shard in shards),
        max(shard.n_tokens for shard in shards),
    )
    n_documents = sum(shard.n_documents for shard in shards)
    needed = shape.stride + shape.overlap
    of = f" of component {part.component.name}" if corpus.mixed else ""
    what = (
        f"the {'training' if split == 'train' else 'held-out'} part{of} has "
        f"{_count(n_tokens, 'token')} in "
        f"{_count(n_documents, 'document')}, and one sequence takes {needed} "
        f"(train.seq_len={config.train.seq_len})"
    )
    data = config.data.component_sections()[part.component.name] if corpus.mixed else config.data
    where, fix = _blamed(data, part, split, needed=needed, n_tokens=n_tokens, longest=longest)
    room = (
        f"train.seq_len={longest - shape.overlap} or less, or "
        if shape.overlap == 1 and longest > 2
        else ""
    )
    return ConfigError(what, where, f"Use {room or 'a shorter train.seq_len, or '}{fix}.")


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _blamed(
    data: DataConfig, part: Part, split: str, *, needed: int, n_tokens: int, longest: int
) -> tuple[str, str]:
    """The key that left a split too short, and what to do about it."""
    if data.kind == "shards":
        where = f"data.path={data.path}"
        larger = (
            "shard_tokens="
            if n_tokens >= needed
            else "val_fraction="
            if split == EVAL_SPLIT
            else "text"
        )
        return (
            where,
            f"shards that are prepared with more {larger}"
            if larger == "text"
            else f"shards with a larger {larger}",
        )
    if n_tokens >= needed:  # in no shard of their own
        return (
            f"data.shard_tokens={data.shard_tokens}, the longest shard has {longest}",
            f"data.shard_tokens={needed} or more",
        )
    if split != EVAL_SPLIT:
        return f"data={data.kind}", "more text"
    if data.val_path:
        return f"data.val_path={data.val_path}", "more text in data.val_path"
    total = sum(shard.n_tokens for shards in part.index.splits.values() for shard in shards)
    enough = max(_SMALLEST_FIX * data.val_fraction, _SMALLEST_FIX * needed / total)
    where = f"data.val_fraction={data.val_fraction} of documents with {total} tokens in all"
    own = "files of your own to hold out: data.val_path=FILES"
    return (
        where,
        f"data.val_fraction={enough:.2g} or more, or {own}"
        if enough <= _LARGEST_FIX
        else f"more text, or {own}",
    )
