"""Preparing a corpus: the same bytes every time, no leak, safe against rivals, kills and full
disks."""

from __future__ import annotations

import builtins
import filecmp
import hashlib
import io
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from scaling.config.run_config import DataConfig, TokenizerConfig
from scaling.data.prepare.build import kept_text
from scaling.data.prepare.cached import ensure_corpus
from scaling.data.prepare.sources import find_source
from scaling.data.read.shard_reader import read_shard
from scaling.data.read.stream import check_shards
from scaling.data.shards import CorpusIndex
from scaling.data.tokenizer.byte_level import load_tokenizer
from scaling.errors import ConfigError, DataError
from tests.support.corpora import (
    BPE,
    BYTE,
    random_documents,
    text_config,
    write_corpus,
    write_texts,
)


@pytest.fixture
def texts(tmp_path):
    return write_texts(tmp_path / "texts")


def documents_of(directory: Path, split: str) -> list[str]:
    """The texts of a split, decoded from its shards."""
    index = CorpusIndex.load(directory)
    tokenizer = load_tokenizer(directory, index)
    tokens = np.concatenate([read_shard(directory, index, shard) for shard in index.split(split)])
    ends = np.flatnonzero(tokens == index.tokenizer.eot_id)
    return [
        tokenizer.decode(tokens[begin:end])
        for begin, end in zip([0, *(ends[:-1] + 1)], ends, strict=True)
    ]


@pytest.mark.parametrize("tokenizer", [BPE, BYTE], ids=["bpe", "byte"])
def test_every_document_is_kept_once_and_exactly(tmp_path, texts, tokenizer):
    directory = ensure_corpus(text_config(texts, tmp_path / "cache"), tokenizer)
    train, val = documents_of(directory, "train"), documents_of(directory, "val")
    originals = [
        path.read_bytes().decode() for path in find_source(text_config(texts, tmp_path)).files
    ]
    assert sorted(train + val) == sorted(originals)
    assert len(val) > 1
    index = CorpusIndex.load(directory)
    assert len(index.split("train")) > 1
    assert sum(shard.n_bytes for split in index.splits.values() for shard in split) == sum(
        len(t.encode()) for t in originals
    )
    assert all(check_shards(directory, index, split, full=True) == [] for split in index.splits)


def test_equal_documents_lie_on_one_side_once_and_empty_ones_nowhere(tmp_path, texts):
    folder = tmp_path / "texts"
    for path in list(folder.iterdir()):
        (folder / f"copy of {path.name}").write_bytes(path.read_bytes())
    (folder / "empty.txt").touch()
    directory = ensure_corpus(text_config(texts, tmp_path / "cache"), BYTE)
    documents = documents_of(directory, "train") + documents_of(directory, "val")
    assert len(documents) == len(set(documents)) == 30
    assert "" not in documents


def test_same_text_elsewhere_gives_the_same_bytes(tmp_path):
    patterns = [write_texts(tmp_path / place) for place in ("one", "two")]
    (tmp_path / "two" / "000.txt").rename(tmp_path / "two" / "zzz.txt")
    here = ensure_corpus(text_config(patterns[0], tmp_path / "cache-one"), BPE)
    with start_build(patterns[1], tmp_path / "cache-two") as process:
        output, _ = process.communicate(timeout=60)
    there = Path(output.splitlines()[-1])
    names = sorted(path.name for path in here.iterdir())
    assert names == sorted(path.name for path in there.iterdir())
    _, different, unreadable = filecmp.cmpfiles(here, there, names, shallow=False)
    assert different == unreadable == []


def test_cached_corpus_is_found_again_and_a_changed_source_is_not_mistaken(tmp_path, texts):
    data = text_config(texts, tmp_path / "cache")
    first = ensure_corpus(data, BYTE)
    stamp = (first / "index.json").stat().st_mtime_ns
    assert ensure_corpus(data, BYTE) == first
    assert (first / "index.json").stat().st_mtime_ns == stamp
    others = [
        ensure_corpus(text_config(texts, tmp_path / "cache", val_fraction=0.3), BYTE),
        ensure_corpus(text_config(texts, tmp_path / "cache", shard_tokens=3000), BYTE),
        ensure_corpus(data, BPE),
    ]
    (tmp_path / "texts" / "new.txt").write_text("one more")
    others.append(ensure_corpus(data, BYTE))
    assert len({first, *others}) == 5


def test_what_is_left_in_the_cache_is_the_corpus_and_an_empty_lock(tmp_path, texts):
    directory = ensure_corpus(text_config(texts, tmp_path / "cache"), BYTE)
    assert {path.name for path in directory.parent.iterdir()} == {
        directory.name,
        f".{directory.name}.lock",
    }


BUILD = """
import sys
from pathlib import Path
from tests.support.corpora import BPE, text_config
from scaling.data.prepare.cached import ensure_corpus

def report(message, part):
    print(message, flush=True)
    if sys.argv[3:] and message.startswith(sys.argv[3]):
        sys.stdin.readline()

print(ensure_corpus(text_config(sys.argv[1], Path(sys.argv[2])), BPE, report), flush=True)
"""


def start_build(pattern: str, cache: Path, pause_at: str = "") -> subprocess.Popen[str]:
    """A process that builds a corpus, reports line by line, and at one message waits for a line
    from us."""
    command = [sys.executable, "-c", BUILD, pattern, str(cache), *([pause_at] if pause_at else [])]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent
    )


def wait_for(process: subprocess.Popen[str], message: str) -> None:
    for line in process.stdout:
        if line.startswith(message):
            return
    pytest.fail(f"the build ended before it said {message!r}")


def test_two_builds_at_once_make_one(tmp_path, texts):
    with start_build(texts, tmp_path / "cache", "writing") as first:
        wait_for(first, "writing")
        with start_build(texts, tmp_path / "cache") as second:
            wait_for(second, "waiting for another process")
            first.stdin.write("\n" * 100)
            outputs = [
                process.communicate(timeout=60)[0].splitlines() for process in (first, second)
            ]
    assert first.returncode == second.returncode == 0
    assert outputs[0][-1] == outputs[1][-1]
    assert len(outputs[1]) == 1  # the second built nothing


def test_killed_build_is_never_used_and_its_remains_are_removed(tmp_path, texts):
    cache = tmp_path / "cache"
    with start_build(texts, cache, "writing the val") as process:
        wait_for(process, "writing the val")
        process.send_signal(signal.SIGKILL)
    (remains,) = cache.glob(".*building*")
    assert (remains / "train-000000.tar").exists()
    directory = ensure_corpus(text_config(texts, cache), BPE)
    assert not remains.exists()
    index = CorpusIndex.load(directory)
    assert all(check_shards(directory, index, split, full=True) == [] for split in index.splits)


def test_interrupted_build_leaves_nothing(tmp_path, texts):
    def interrupt(message: str, part: float | None) -> None:
        if message.startswith("writing"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure_corpus(text_config(texts, tmp_path / "cache"), BYTE, interrupt)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_full_disk(tmp_path, texts):
    """A limit on the size of files stands for it: the write fails in the middle of a shard."""
    import webdataset.writer  # noqa: F401  before the limit, since the first import may write to caches of its own

    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, hard))
    try:
        with pytest.raises(
            DataError,
            match=r"the corpus cannot be built in .*: File too large(.|\n)*Set data.cache_dir",
        ):
            ensure_corpus(text_config(texts, tmp_path / "cache"), BYTE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_cache_that_cannot_be_written(tmp_path, texts):
    (tmp_path / "file").touch()
    with pytest.raises(
        DataError, match=r"cannot be built in .*: Not a directory(.|\n)*Set data.cache_dir"
    ):
        ensure_corpus(text_config(texts, tmp_path / "file" / "cache"), BYTE)


def test_a_file_that_is_not_utf8(tmp_path, texts):
    (tmp_path / "texts" / "latin1.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(DataError, match=r"latin1.txt is not UTF-8 text: byte 0xe9 at 3"):
        ensure_corpus(text_config(texts, tmp_path / "cache"), BYTE)


def test_sources_without_documents(tmp_path):
    with pytest.raises(ConfigError, match=r"data.path='nothing/\*' matches no file \(seen from"):
        ensure_corpus(text_config("nothing/*", tmp_path / "cache"), BYTE)
    empty = r"no text to read; left out 1 file that is empty: .*one\.txt"
    for text, told in (("", empty), ("x", "1 distinct non-empty document")):
        (tmp_path / "one.txt").write_text(text)
        with pytest.raises(ConfigError, match=told):
            ensure_corpus(text_config(f"{tmp_path}/one.txt", tmp_path / "cache"), BYTE)


def test_few_documents_are_split_with_one_on_each_side(tmp_path):
    pattern = write_texts(tmp_path / "two", n_files=2)
    directory = ensure_corpus(text_config(pattern, tmp_path / "cache", val_fraction=0.01), BYTE)
    assert [len(documents_of(directory, split)) for split in ("train", "val")] == [1, 1]


def test_standard_library_leaves_tests_and_installed_packages_out(tmp_path):
    files = find_source(DataConfig(kind="python_stdlib", cache_dir=str(tmp_path))).files
    names = {str(path) for path in files}
    assert len(files) > 300
    assert any(name.endswith("/json/decoder.py") for name in names)
    for part in (
        "/site-packages/",
        "/dist-packages/",
        "/test/",
        "/tests/",
        "/idle_test/",
        "/__pycache__/",
    ):
        assert not any(part in name for name in names)


def test_default_corpus_is_looked_up_without_opening_its_files(tmp_path, monkeypatch):
    stats = []
    stat = Path.stat
    monkeypatch.setattr(
        Path, "stat", lambda path, **options: stats.append(path) or stat(path, **options)
    )
    for owner, name in ((io, "open"), (builtins, "open"), (os, "open")):
        monkeypatch.setattr(owner, name, None)
    source = find_source(DataConfig(kind="python_stdlib", cache_dir=str(tmp_path)))
    stats.clear()
    source.identity()
    assert sorted(stats) == sorted(source.files), "each is looked at once"


def test_prepared_shards_must_fit_the_tokenizer(tmp_path):
    write_corpus(tmp_path, random_documents(0))
    data = DataConfig(kind="shards", path=str(tmp_path), cache_dir=str(tmp_path / "cache"))
    assert ensure_corpus(data, TokenizerConfig(kind="bpe", vocab_size=1000)) == tmp_path
    with pytest.raises(
        ConfigError, match=r"bpe with 1000 entries, and the configuration has bpe with 4096"
    ):
        ensure_corpus(data, TokenizerConfig(kind="bpe", vocab_size=4096))
    with pytest.raises(DataError, match="no such file"):
        ensure_corpus(data.model_copy(update={"path": str(tmp_path / "nowhere")}), BYTE)


def test_golden_corpus(tmp_path):
    """Changed bytes of prepared corpora: raise the builder's version with them."""
    pattern = str(tmp_path / "*.txt")
    for name in "abcdef":
        (tmp_path / f"{name}.txt").write_text(name * 50)
    directory = ensure_corpus(text_config(pattern, tmp_path / "cache"), BYTE)
    index = CorpusIndex.load(directory)
    assert (
        hashlib.sha256((directory / "train-000000.tar").read_bytes()).hexdigest()[:16]
        == "fe0162ebd20b09ba"
    )
    assert [
        (len(shards), shards[0].n_documents, shards[0].n_tokens) for shards in index.splits.values()
    ] == [(1, 4, 204), (1, 2, 102)]


def test_named_files_are_held_out_and_never_trained_on(tmp_path: Path) -> None:
    for name, text in {
        "a.txt": "alpha " * 50,
        "b.txt": "beta " * 50,
        "copy.txt": "gamma " * 50,
        "held.txt": "gamma " * 50,
    }.items():
        (tmp_path / name).write_text(text)
    data = DataConfig(
        kind="text_files",
        path=f"{tmp_path}/[abc]*.txt",
        val_path=f"{tmp_path}/held.txt",
        cache_dir=str(tmp_path / "cache"),
    )
    directory = ensure_corpus(data, BYTE)
    index = CorpusIndex.load(directory)
    assert {
        split: sum(s.n_documents for s in index.split(split)) for split in ("train", "val")
    } == {"train": 2, "val": 1}
    assert sum(s.n_bytes for s in index.split("val")) == len("gamma " * 50)
    with pytest.raises(ConfigError, match=r"val_path='[^']*none' matches no file"):
        ensure_corpus(data.model_copy(update={"val_path": f"{tmp_path}/none"}), BYTE)
    with pytest.raises(ConfigError, match=r"no text is left to train on"):
        ensure_corpus(data.model_copy(update={"path": f"{tmp_path}/held.txt"}), BYTE)


def test_reading_is_said_once_and_nothing_is_said_of_nothing(tmp_path, texts):
    told: list[str] = []
    ensure_corpus(
        text_config(texts, tmp_path / "cache"), BYTE, lambda text, part: told.append(text)
    )
    said = list(dict.fromkeys(told))
    assert [text for text in said if text.startswith("reading")] == [said[0]]
    assert re.fullmatch(r"reading \d+ files", said[0])
    assert kept_text(6, 0, 0) == "6 documents"
    assert kept_text(1, 1, 0) == "1 document, without 1 exact duplicate"
    assert kept_text(2, 0, 3) == "2 documents, without 3 empty ones"
    assert kept_text(2, 2, 1) == "2 documents, without 2 exact duplicates and 1 empty one"
