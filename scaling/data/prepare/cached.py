"""The prepared corpus of a configuration: found in the cache, or built there once, whole or not at
all.

A cached corpus costs no import of torch, webdataset or tokenizers.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from scaling.config.paths import plain
from scaling.config.run_config import DataConfig, TokenizerConfig
from scaling.data.io.fetch import fetch_whole, join, local_path
from scaling.data.mixture import Component, write_mixture
from scaling.data.prepare.build import TOKENIZER_FILE, Recipe, build, written_text
from scaling.data.prepare.recipe import directory_name, recipe_of
from scaling.data.prepare.resume import WAITING, build_or_finish, noted_commits
from scaling.data.prepare.tasks import Report, n_cores, put, silent
from scaling.data.shards import INDEX_FILE, CorpusIndex
from scaling.data.tokenizer.byte_level import MAX_TOKENIZER_BYTES
from scaling.errors import ConfigError, DataError
from scaling.runs.file_lock import file_lock
from scaling.runs.files import fsync

_FIXES = {
    errno.ENOSPC: "Free some space, or set data.cache_dir to a directory on another disk.",
    errno.EDQUOT: "Your quota is used up: free some space, or set data.cache_dir to another disk.",
}


def ensure_corpus(
    data: DataConfig, tokenizer: TokenizerConfig, report: Report = silent
) -> Path | str:
    """Directory (with data=shards the URL, where it is one) of index.json or mixture.json; built
    first if it is not there.

    Two processes that need the same corpus build it once: the second waits. Raises ConfigError for
    a source without files or a tokenizer that does not fit, DataError for unreadable files and for
    a full or read-only disk.
    """
    try:
        return (
            _mixed(data, tokenizer, report)
            if data.kind == "mixture"
            else _single(data, tokenizer, report)
        )
    except OSError as error:
        raise _disk_error(Path(data.cache_dir).expanduser().absolute(), error) from error


def _single(
    data: DataConfig, tokenizer: TokenizerConfig, report: Report, given: Path | None = None
) -> Path | str:
    """`given`: file of a tokenizer that was learnt from another corpus."""
    if data.kind == "shards":
        return _prepared(data, tokenizer)
    cache = Path(data.cache_dir).expanduser().absolute()
    hub = str(given) if given is not None else tokenizer.name
    directory = cache / directory_name(data, tokenizer, _sha256(hub))
    if (directory / INDEX_FILE).is_file():
        return directory
    # may take hours: built where it stays, and gone on with after a kill
    if data.kind == "documents":
        commits = noted_commits(directory)
        recipe = recipe_of(data, tokenizer, hub, commits, report)
        index, _ = build_or_finish(recipe, directory, n_cores(), report, commits=commits, wait=True)
        report(written_text(index), None)
        return directory
    with _lock(cache, directory.name, report):
        if not (directory / INDEX_FILE).is_file():
            recipe = recipe_of(data, tokenizer, hub, {}, report)
            _build(recipe, directory, report)
            report(written_text(CorpusIndex.load(directory)), None)
    return directory


def _sha256(hub: str | None) -> str | None:
    """Hash of a tokenizer's file on this machine."""
    path = Path(plain(hub)) if hub is not None else None
    if path is not None and path.is_dir():
        path /= TOKENIZER_FILE
    return (
        hashlib.sha256(path.read_bytes()).hexdigest()
        if path is not None and path.is_file()
        else None
    )


def _prepared(data: DataConfig, tokenizer: TokenizerConfig) -> Path | str:
    assert data.path is not None
    info = CorpusIndex.load(data.path).tokenizer
    if tokenizer.kind not in (info.kind, "hf") or info.vocab_size != tokenizer.vocab_size:
        raise ConfigError(
            f"the corpus was tokenised by {info.kind} with {info.vocab_size} entries, and the "
            "configuration has "
            f"{tokenizer.kind} with {tokenizer.vocab_size}",
            where=f"data.path={data.path}",
            fix=f"Use tokenizer={info.kind} tokenizer.vocab_size={info.vocab_size}, or prepare "
            "the text again.",
        )
    path = local_path(data.path)
    return path.absolute() if path is not None else data.path


def _mixed(data: DataConfig, tokenizer: TokenizerConfig, report: Report) -> Path:
    """Directory of mixture.json, which names the corpora, all tokenised alike: a tokenizer is
    learnt from the first of them."""
    cache = Path(data.cache_dir).expanduser().absolute()
    components: list[Component] = []
    given: Path | None = None
    for part, (name, config) in zip(
        data.components or (), data.component_sections().items(), strict=True
    ):
        report(f"{name}: {config.kind}{f' {config.path}' if config.path else ''}", None)
        location = _single(config, tokenizer, report, given)
        index = CorpusIndex.load(location)
        components.append(Component(name, str(location), index.fingerprint, part.weight))
        _check_alike(name, index, components[0])
        if given is None and tokenizer.kind not in ("byte", "hf"):
            given = _kept(
                cache, fetch_whole(join(location, index.tokenizer.file), MAX_TOKENIZER_BYTES)
            )
    return write_mixture(cache, components)


def _check_alike(name: str, index: CorpusIndex, first: Component) -> None:
    """Raises ConfigError for a corpus of another tokenizer than the first one's."""
    info = CorpusIndex.load(first.location).tokenizer
    if info.sha256 != index.tokenizer.sha256:
        raise ConfigError(
            f"the corpora {first.name} and {name} were made with different tokenizers",
            "data.components",
            f"Prepare both with one: scaling.prepare tokenizer=hf:{first.location} makes shards "
            f"with that of {first.name}.",
        )


def _kept(cache: Path, tokenizer: bytes) -> Path:
    """The file of a tokenizer, for corpora that are prepared with it."""
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"tokenizer-{hashlib.sha256(tokenizer).hexdigest()[:12]}.json"
    if not path.exists():
        put(path, tokenizer)
    return path


@contextlib.contextmanager
def _lock(cache: Path, name: str, report: Report) -> Iterator[None]:
    """Hold the lock of one corpus."""
    cache.mkdir(parents=True, exist_ok=True)
    with file_lock(cache / f".{name}.lock", lambda: report(WAITING, None)):
        yield


def _build(recipe: Recipe, directory: Path, report: Report) -> None:
    """Build beside the final place, then rename. Called under the lock, so what an earlier build
    left behind is dead."""
    prefix = f".{directory.name}.building-"
    for left in directory.parent.glob(f"{prefix}*"):
        shutil.rmtree(left)
    if directory.exists():
        raise DataError(
            f"{directory} exists but has no {INDEX_FILE}",
            fix="Move it away; it was not made by a finished build.",
        )
    temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=directory.parent))
    try:
        build(recipe, temporary, 1, report)
        # mkdtemp makes it private; the cache is shared as far as its own permissions allow
        temporary.chmod(0o755)
        temporary.rename(directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync(directory.parent)


def _disk_error(cache: Path, error: OSError) -> DataError:
    place = error.filename or cache
    fix = _FIXES.get(
        error.errno or 0,
        "Set data.cache_dir (or the variable SCALING_CACHE) to a directory that can be written.",
    )
    return DataError(
        f"the corpus cannot be built in {cache}: {error.strerror or error}",
        where=str(place),
        fix=fix,
    )
