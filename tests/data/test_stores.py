"""Shards, indexes and inputs in stores that fsspec opens; its store in memory plays their part."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow import parquet

from scaling import prepare
from scaling.config.data_path import kind_of
from scaling.data.io import http
from scaling.data.io.fetch import fetch, open_location, size_bytes
from scaling.data.io.http import Patience
from scaling.data.io.store import DRIVERS
from scaling.data.prepare import inputs
from scaling.data.read.stream import SequenceStream
from scaling.data.shards import CorpusIndex
from scaling.errors import DataError
from tests.support.corpora import random_documents, write_corpus
from tests.support.prepare_inputs import contents, json_lines, texts, write_inputs

LETTERS = bytes(range(65, 91))


@pytest.fixture
def store(monkeypatch) -> Iterator[MemoryFileSystem]:
    monkeypatch.setattr(http, "_FIRST_DELAY_S", 0.001)
    memory = fsspec.filesystem("memory")
    yield memory
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


def publish(memory: MemoryFileSystem, folder: Path, where: str = "/bucket") -> None:
    for path in folder.iterdir():
        memory.pipe_file(f"{where}/{path.name}", path.read_bytes())


def all_of(directory: str | Path) -> np.ndarray:
    stream = SequenceStream(
        directory, CorpusIndex.load(directory), "train", seq_len=16, seed=5, shuffle=False
    )
    return stream.read(np.arange(stream.n_sequences))


def failing(monkeypatch, error: Exception, n_times: int) -> list[str]:
    """Every request for bytes fails, so many times; returns the list of requests."""
    real, asked = MemoryFileSystem.cat_file, []

    def cat_file(self: Any, path: str, **options: Any) -> bytes:
        asked.append(path)
        if len(asked) <= n_times:
            raise error
        return real(self, path, **options)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    return asked


def test_a_corpus_in_a_store_is_that_of_a_folder(store, tmp_path):
    write_corpus(tmp_path, random_documents(0))
    publish(store, tmp_path)
    np.testing.assert_array_equal(all_of("memory://bucket"), all_of(tmp_path))


class _DriverError(Exception):
    """Drivers raise errors that are no OSError."""


@pytest.mark.parametrize("error", [OSError("the store is busy"), _DriverError("throttled")])
def test_a_request_that_fails_is_repeated(store, monkeypatch, error):
    store.pipe_file("/bucket/a", LETTERS)
    asked = failing(monkeypatch, error, 2)
    assert fetch("memory://bucket/a") == LETTERS
    assert len(asked) == 3
    asked = failing(monkeypatch, error, 10_000)
    with pytest.raises(DataError, match=r"cannot be read: .*(busy|throttled).*attempts"):
        fetch("memory://bucket/a", patience=Patience(give_up_s=0.05))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FileNotFoundError("/bucket/a"), "no such file"),
        (PermissionError("Access Denied"), "Access Denied"),
    ],
)
def test_what_will_not_change_is_reported_at_once(store, monkeypatch, error, reason):
    store.pipe_file("/bucket/a", LETTERS)
    asked = failing(monkeypatch, error, 10_000)
    with pytest.raises(DataError, match=reason):
        fetch("memory://bucket/a")
    assert len(asked) == 1


def test_files_of_a_store_can_be_entered_anywhere(store):
    store.pipe_file("/bucket/a", LETTERS)
    assert size_bytes("memory://bucket/a") == 26
    assert fetch("memory://bucket/a", max_bytes=3) == b"ABC"
    with open_location("memory://bucket/a") as file:
        file.seek(-3, 2)
        assert (file.tell(), file.read(), file.read()) == (23, b"XYZ", b"")
        file.seek(3)
        assert file.read(4) == b"DEFG"


def test_inputs_in_a_store_make_the_corpus_that_files_make(store, tmp_path):
    pattern = write_inputs(tmp_path / "in", texts(60))
    table = pyarrow.table({"text": texts(20, 60)})
    parquet.write_table(table, tmp_path / "in" / "f.parquet", row_group_size=7)
    publish(store, tmp_path / "in")
    words = ("tokenizer=byte", "shard_tokens=5000", "processes=1")
    for name, inputs_ in (("local", pattern), ("remote", "memory://bucket/*")):
        assert prepare.main([f"inputs={inputs_}", f"out={tmp_path / name}", *words]) == 0
    assert contents(tmp_path / "remote") == contents(tmp_path / "local")


def test_large_files_of_a_store_are_pieces(store, monkeypatch):
    monkeypatch.setattr(inputs, "PIECE_BYTES", 500)
    store.pipe_file("/bucket/a.jsonl", json_lines(texts(60)))
    assert len(inputs.find_pieces(["memory://bucket/a.jsonl"])) > 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("memory://bucket", "it is a folder: name its files"),
        ("memory://bucket/none.jsonl", "no such file"),
        ("memory://bucket/*.txt", "matches no file"),
        ("memory://a::file:///etc/passwd", "it chains file systems"),
    ],
)
def test_inputs_that_a_store_does_not_have(store, text, message):
    store.pipe_file("/bucket/a.jsonl", LETTERS)
    with pytest.raises(DataError, match=message):
        inputs.find_pieces([text])


@pytest.mark.parametrize("scheme", sorted(DRIVERS))
def test_a_driver_that_is_not_installed_is_named(monkeypatch, scheme):
    def without(name: str) -> Any:
        raise ImportError(f"no driver for {name}")

    monkeypatch.setattr(fsspec.core, "get_filesystem_class", without)
    monkeypatch.setattr(fsspec.core, "filesystem", without)
    with pytest.raises(DataError, match=f"needs the package {DRIVERS[scheme]}") as caught:
        CorpusIndex.load(f"{scheme}://bucket/corpus")
    assert f"pip install {DRIVERS[scheme]}" in str(caught.value)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("s3://bucket/shards", "shards"),
        ("s3://bucket/*", "documents"),
        ("gs://bucket/a.jsonl.zst", "documents"),
    ],
)
def test_a_url_of_a_store_chooses_the_kind(path: str, kind: str) -> None:
    assert kind_of(path) == kind
