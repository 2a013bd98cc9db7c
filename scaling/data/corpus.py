"""The prepared corpus of a configuration: found in the cache, or built there once, whole or not at all.

A cached corpus costs no import of torch, webdataset or tokenizers.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from scaling.config import DataConfig, TokenizerConfig
from scaling.data.fetch import local_path
from scaling.data.prepare import build_corpus
from scaling.data.shards import FORMAT_VERSION, INDEX_FILE, CorpusIndex
from scaling.data.sources import find_source
from scaling.data.tasks import Report
from scaling.errors import ConfigError, DataError

_BUILDER_VERSION = 1  # of what a build writes: raise it when the same source and settings give other bytes
_FIXES = {
    errno.ENOSPC: "Free some space, or set data.cache_dir to a directory on another disk.",
    errno.EDQUOT: "Your quota is used up: free some space, or set data.cache_dir to a directory on another disk.",
}


def _silent(message: str, part: float | None) -> None:
    """A report that is not shown."""


def ensure_corpus(data: DataConfig, tokenizer: TokenizerConfig, report: Report = _silent) -> Path | str:
    """Directory (a str where it is a URL, with data=shards) that holds index.json; built first if it is not there.

    Two processes that need the same corpus build it once: the second waits. Raises ConfigError for a source without
    files or a tokenizer that does not fit, DataError for unreadable files and for a full or read-only disk.
    """
    if data.kind == "shards":
        return _prepared(data, tokenizer)
    cache = Path(data.cache_dir).expanduser().absolute()
    directory = cache / _directory_name(data, tokenizer)
    if not (directory / INDEX_FILE).is_file():
        try:
            with _lock(cache, directory.name, report):
                if not (directory / INDEX_FILE).is_file():
                    _build(data, tokenizer, directory, report)
        except OSError as error:
            raise _disk_error(cache, error) from error
    return directory


def _prepared(data: DataConfig, tokenizer: TokenizerConfig) -> Path | str:
    assert data.path is not None
    info = CorpusIndex.load(data.path).tokenizer
    if (info.kind, info.vocab_size) != (tokenizer.kind, tokenizer.vocab_size):
        raise ConfigError(
            f"the corpus was tokenised by {info.kind} with {info.vocab_size} entries, and the configuration has "
            f"{tokenizer.kind} with {tokenizer.vocab_size}",
            where=f"data.path={data.path}",
            fix=f"Use tokenizer={info.kind} tokenizer.vocab_size={info.vocab_size}, or prepare the text anew.",
        )
    path = local_path(data.path)
    return path.absolute() if path is not None else data.path


def _directory_name(data: DataConfig, tokenizer: TokenizerConfig) -> str:
    """Kind and a hash of all that the corpus is made of."""
    identity = {
        "source": find_source(data).identity(),
        "tokenizer": tokenizer.model_dump(exclude_defaults=True),
        "val_fraction": data.val_fraction,
        "shard_tokens": data.shard_tokens,
        "format": [FORMAT_VERSION, _BUILDER_VERSION],
    }
    return f"{data.kind}-{hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]}"


@contextlib.contextmanager
def _lock(cache: Path, name: str, report: Report) -> Iterator[None]:
    """Hold the lock of one corpus; the kernel lets go of it when its holder dies. Its file stays, empty."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f".{name}.lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("waiting for another process that builds the same corpus", None)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(data: DataConfig, tokenizer: TokenizerConfig, directory: Path, report: Report) -> None:
    """Build beside the final place, then rename. Called under the lock, so what an earlier build left behind is dead."""
    prefix = f".{directory.name}.building-"
    for left in directory.parent.glob(f"{prefix}*"):
        shutil.rmtree(left)
    if directory.exists():
        raise DataError(f"{directory} exists but has no {INDEX_FILE}", fix="Move it away; it was not made by a finished build.")
    temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=directory.parent))
    try:
        build_corpus(data, tokenizer, temporary, report)
        temporary.chmod(0o755)  # mkdtemp makes it private; the cache is shared as far as its own permissions allow
        temporary.rename(directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync_parent(directory)


def _sync_parent(path: Path) -> None:
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _disk_error(cache: Path, error: OSError) -> DataError:
    place = error.filename or cache
    fix = _FIXES.get(error.errno or 0, "Set data.cache_dir (or the variable SCALING_CACHE) to a directory that can be written.")
    return DataError(f"the corpus cannot be built in {cache}: {error.strerror or error}", where=str(place), fix=fix)
