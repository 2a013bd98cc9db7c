"""Reading shards: what is read is what was written, and every disagreement with the index names the
shard."""

from __future__ import annotations

import contextlib
import http.server
import os
import pickle
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.data.io import http as transport
from scaling.data.io.http import Patience
from scaling.data.prepare import write_shards
from scaling.data.read import shard_reader as reader
from scaling.data.read import stream as data_stream
from scaling.data.read.source import Streaming
from scaling.data.read.stream import BadShard, SequenceStream, check_shards
from scaling.data.read.verified import Verified, VerifiedShards
from scaling.data.shards import CorpusIndex
from scaling.errors import DataError
from tests.support.corpora import (
    EOT,
    VOCAB_SIZE,
    document_members,
    random_documents,
    tar_bytes,
    with_shard,
    write_corpus,
    write_shard,
)

SHARD = "train-000001.tar"


@pytest.fixture
def corpus(tmp_path):
    return tmp_path, write_corpus(tmp_path, random_documents(0))


@pytest.fixture
def server(tmp_path, monkeypatch):
    """URL of an HTTP server over tmp_path, on loopback."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = partial(_Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Keep the test's output clean."""


def open_stream(directory, index, **options):
    return SequenceStream(directory, index, "train", seq_len=16, seed=5, **options)


def read_all(directory, index, **options):
    stream = open_stream(directory, index, shuffle=False, **options)
    return stream.read(np.arange(stream.n_sequences))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), max_resident_shards=st.integers(1, 4), shuffle=st.booleans())
def test_reads_the_documents_joined_by_end_of_text(
    tmp_path_factory, seed, max_resident_shards, shuffle
):
    directory = tmp_path_factory.mktemp("corpus")
    documents = random_documents(seed)
    index = write_corpus(directory, documents)
    streams = [
        np.concatenate([np.append(document, EOT) for document in shard]) for shard in documents
    ]
    stream = open_stream(directory, index, max_resident_shards=max_resident_shards, shuffle=shuffle)
    ks = np.random.default_rng(seed).integers(0, 3 * stream.n_sequences, 40)
    rows = stream.read(ks)
    assert rows.dtype == index.dtype
    for row, shard, offset in zip(rows, *stream.order.locate(ks), strict=True):
        np.testing.assert_array_equal(row, streams[shard][offset : offset + 17])


def test_long_sequences_are_the_same_as_short_ones(corpus, monkeypatch):
    directory, index = corpus
    ks = np.arange(40)
    short = open_stream(directory, index).read(ks)
    monkeypatch.setattr(data_stream, "_LONG", 16)
    np.testing.assert_array_equal(open_stream(directory, index).read(ks), short)


def test_keeps_no_more_shards_than_it_may(corpus):
    directory, index = corpus
    stream = open_stream(directory, index, max_resident_shards=2)
    stream.read(np.arange(stream.n_sequences))
    assert len(stream._resident) == 2


def test_an_epoch_reads_each_shard_once_however_reads_meet_its_windows(tmp_path, monkeypatch):
    index = write_corpus(tmp_path, random_documents(0, n_shards=50))
    read: list[str] = []
    fetch = reader.fetch

    def noted(location: str, **options: object) -> bytes:
        read.append(Path(location).name)
        return fetch(location, **options)

    monkeypatch.setattr(reader, "fetch", noted)
    stream = open_stream(tmp_path, index)
    for begin in range(0, stream.n_sequences, 50):
        stream.read(np.arange(begin, min(begin + 50, stream.n_sequences)))
    assert sorted(read) == [shard.name for shard in index.split("train") if shard.n_tokens > 16]


def test_url_and_directory_hold_the_same_corpus(corpus, server):
    directory, index = corpus
    expected = read_all(directory, index)
    for place in (server, server + "/", directory.as_uri(), str(directory)):
        found = CorpusIndex.load(place)
        assert found == index
        assert found.fingerprint == index.fingerprint
        assert check_shards(place, found, "train", full=True) == []
        np.testing.assert_array_equal(read_all(place, found), expected)


def refused(directory, index, match: str) -> None:
    """Reading names the damaged shard, the cause and the way out."""
    with pytest.raises(DataError, match=match) as caught:
        read_all(directory, index)
    assert f"shard {SHARD} is missing or damaged" in str(caught.value)
    assert "data.on_bad_shard=skip" in str(caught.value)


def test_missing_shard(corpus):
    directory, index = corpus
    (directory / SHARD).unlink()
    refused(directory, index, "no such file")
    (bad,) = check_shards(directory, index, "train")
    assert bad == BadShard(SHARD, f"{directory / SHARD} cannot be read: no such file")


def test_http_404_is_not_retried(corpus, server, monkeypatch):
    directory, index = corpus
    (directory / SHARD).unlink()
    monkeypatch.setattr(transport, "_delay_s", lambda *_: pytest.fail("waited to ask again"))
    refused(server, index, "HTTP 404 File not found")
    assert [bad.name for bad in check_shards(server, index, "train")] == [SHARD]


def test_server_that_is_down_is_asked_again(corpus, monkeypatch):
    _, index = corpus
    monkeypatch.setattr(transport, "_FIRST_DELAY_S", 0.01)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    streaming = Streaming(patience=Patience(give_up_s=0.2))
    with pytest.raises(DataError, match=r"Connection refused \(the last of \d+ attempts"):
        read_all("http://127.0.0.1:9", index, streaming=streaming)


@pytest.mark.parametrize("full", [False, True])
def test_truncated_shard(corpus, full):
    directory, index = corpus
    size = index.split("train")[1].size_bytes
    os.truncate(directory / SHARD, size - 1024)
    refused(directory, index, f"it has {size - 1024} bytes, and the index says {size}")
    assert [bad.name for bad in check_shards(directory, index, "train", full=full)] == [SHARD]


def test_longer_shard(corpus):
    directory, index = corpus
    with (directory / SHARD).open("ab") as file:
        file.write(b"x" * 512)
    refused(directory, index, "it has more than")


def test_flipped_bit(corpus):
    directory, index = corpus
    content = bytearray((directory / SHARD).read_bytes())
    content[600] ^= 1
    (directory / SHARD).write_bytes(content)
    refused(directory, index, "its sha256 is .*, and the index says")
    assert check_shards(directory, index, "train") == []
    assert [bad.name for bad in check_shards(directory, index, "train", full=True)] == [SHARD]


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def epoch(stream: SequenceStream, number: int) -> np.ndarray:
    return stream.read(number * stream.n_sequences + np.arange(stream.n_sequences))


def one_at_a_time(directory: Path, index: CorpusIndex) -> SequenceStream:
    return open_stream(directory, index, shuffle=False, max_resident_shards=1)


@given(place=st.floats(0, 1, exclude_max=True))
@settings(max_examples=40, deadline=None)
def test_a_bit_that_falls_over_between_two_uses_is_refused(tmp_path_factory, place):
    directory = tmp_path_factory.mktemp("corpus")
    index = write_corpus(directory, random_documents(0))
    with one_at_a_time(directory, index) as stream:
        first = epoch(stream, 0)
        bit = int(place * 8 * index.split("train")[1].size_bytes)
        flip(directory / SHARD, bit)
        with pytest.raises(
            DataError,
            match=f"shard {SHARD} is missing.*: it has changed since it was verified: its crc32",
        ):
            epoch(stream, 1)
        flip(directory / SHARD, bit)
        np.testing.assert_array_equal(epoch(stream, 1), first)


def test_what_was_verified_is_neither_hashed_nor_walked_again(corpus, monkeypatch):
    directory, index = corpus
    with one_at_a_time(directory, index) as stream:
        first = epoch(stream, 0)
        monkeypatch.setattr(reader, "hashlib", None)
        monkeypatch.setattr(reader, "_own_spans", None)
        monkeypatch.setattr(reader, "_check_tokens", None)
        np.testing.assert_array_equal(epoch(stream, 1), first)


def test_a_tar_of_another_layout_comes_again_too(corpus):
    directory, index = corpus
    index = replace_shard(
        directory, index, {f"{i}.u16": bytes(2 * n) for i, n in enumerate([30, 40])}
    )
    index = with_shard(index, replace(index.split("train")[1], n_documents=2, n_tokens=72))
    with one_at_a_time(directory, index) as stream:
        np.testing.assert_array_equal(epoch(stream, 0), epoch(stream, 1))
        flip(directory / SHARD, 0)
        with pytest.raises(DataError, match="it has changed since it was verified"):
            epoch(stream, 2)


@pytest.mark.parametrize(
    "damage", [lambda path: os.truncate(path, 1024), lambda path: path.unlink()]
)
def test_a_shard_that_is_cut_off_or_gone_between_two_uses_is_refused(corpus, damage):
    directory, index = corpus
    with one_at_a_time(directory, index) as stream:
        epoch(stream, 0)
        damage(directory / SHARD)
        with pytest.raises(DataError, match=f"shard {SHARD} is missing or damaged"):
            epoch(stream, 1)


def test_a_claim_that_fails_is_not_remembered(corpus):
    directory, index = corpus
    bad = with_shard(index, replace(index.split("train")[1], n_documents=6))
    with one_at_a_time(directory, bad) as stream:
        for _ in range(2):
            with pytest.raises(DataError, match="and the index says 6"):
                epoch(stream, 0)


def test_no_more_is_remembered_than_was_asked_for(corpus):
    _, index = corpus
    shards, known = index.split("train"), VerifiedShards(max_remembered=10)
    seen = Verified(7, np.zeros((5, 2), dtype=np.int64))
    for shard in shards:
        known.add(shard, seen)
    known.add(shards[0], seen)
    assert [known.get(shard) for shard in shards] == [seen, None, None]
    known.add(shards[1], Verified(8, None))
    assert known.get(shards[1]) == Verified(8, None)


def test_threads_do_not_remember_more_than_was_asked_for(corpus):
    """Each that finds the room there waits for another to find it too, which one that is alone with
    it waits for in vain."""
    _, index = corpus
    shards = index.split("train")[:2]
    both = threading.Barrier(2)

    class Room(int):
        def __ge__(self, size: int) -> bool:
            with contextlib.suppress(threading.BrokenBarrierError):
                both.wait(timeout=0.2)
            return int(self) >= size

        def __sub__(self, size: int) -> Room:
            return Room(int(self) - size)

    known = VerifiedShards(max_remembered=Room(1))
    threads = [
        threading.Thread(target=known.add, args=(shard, Verified(7, None))) for shard in shards
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([shard for shard in shards if known.get(shard)]) == 1


def replace_shard(
    directory: Path, index: CorpusIndex, members: dict[str, bytes] | bytes
) -> CorpusIndex:
    """Another tar in the shard's place, with size and checksum that agree with the index: only its
    inside is wrong."""
    old = index.split("train")[1]
    content = members if isinstance(members, bytes) else tar_bytes(members)
    return with_shard(index, write_shard(directory, SHARD, content, old.n_documents, old.n_tokens))


def test_empty_tar(corpus):
    directory, index = corpus
    refused(
        directory,
        replace_shard(directory, index, {}),
        "it holds 0 documents of 0 tokens, and the index says 5 of",
    )
    refused(directory, replace_shard(directory, index, b""), "damaged")


def test_wrong_counts(corpus):
    directory, index = corpus
    old = index.split("train")[1]
    refused(
        directory,
        with_shard(index, replace(old, n_documents=6)),
        r"it holds 5 documents of \d+ tokens, and the index says 6",
    )
    refused(
        directory,
        with_shard(index, replace(old, n_tokens=old.n_tokens + 1)),
        f"says 5 of {old.n_tokens + 1}",
    )


def test_token_beyond_the_vocabulary(corpus):
    directory, index = corpus
    documents = [np.full(20, 7)] * 4 + [np.full(20, VOCAB_SIZE)]
    index = replace_shard(directory, index, document_members(documents))
    index = with_shard(index, replace(index.split("train")[1], n_documents=5, n_tokens=105))
    refused(
        directory,
        index,
        f"it holds token id {VOCAB_SIZE}, and the vocabulary has {VOCAB_SIZE} entries",
    )


class _Bomb:
    """Makes a directory when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize(
    "member",
    [
        "000000000.pickle",
        "000000000.pyd",
        "000000000.u32",
        "../../etc/1.u16",
        "/tmp/1.u16",
        "..u16",
        "name.u16",
        "1.tar.u16",
    ],
)
def test_only_numbered_raw_members_are_read(corpus, member):
    directory, index = corpus
    index = replace_shard(directory, index, {member: pickle.dumps(_Bomb(directory / "unpickled"))})
    before = {path.name for path in directory.iterdir()}
    refused(directory, index, "nothing else is read|it holds 0 documents")
    assert {path.name for path in directory.iterdir()} == before


def test_member_beside_the_tokens(corpus):
    directory, index = corpus
    index = replace_shard(directory, index, {"000000000.u16": b"\1\0", "000000000.pth": b"x"})
    refused(
        directory,
        index,
        "it holds '000000000.pth, 000000000.u16'; a document is one member NUMBER.u16",
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x1f\x8b" + b"x" * 600, "not an uncompressed tar"),
        (b"x" * 600, "not an uncompressed tar"),
        (
            tar_bytes({"000000000.u16": bytes(2000)})[:1000],
            "not a readable tar file: unexpected end of data",
        ),
        (tar_bytes({"000000000.u16": b"odd"}), "document 0 has 3 bytes, not a multiple of 2"),
    ],
)
def test_malformed_tars_whose_checksum_agrees(corpus, content, reason):
    directory, index = corpus
    refused(directory, replace_shard(directory, index, content), reason)


@pytest.mark.parametrize(
    "location",
    [
        "pipe:cat /etc/passwd",
        "ftp://host/dir",
        "javascript:1",
        "scp://host/dir",
        "simplecache::s3://bucket/dir",
        "local://etc",
        "reference://x",
        "git://repository",
        "dask://host/dir",
    ],
)
def test_schemes_that_are_not_opened(location):
    with pytest.raises(DataError, match="is not allowed"):
        CorpusIndex.load(location)


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (
            ("train-000001.tar", "../train-000001.tar"),
            "'../train-000001.tar' is not the plain name",
        ),
        (("train-000001.tar", "pipe:id"), "'pipe:id' is not the plain name"),
        (('"dtype": "uint16"', '"dtype": "object"'), "dtype is 'object'"),
        (
            ('"format_version": 1', '"format_version": 99'),
            "format_version is 99, this version reads 1",
        ),
        (('"eot_id"', '"eot"'), "key 'eot_id' is missing"),
        (('"nsamples": 5', '"nsamples": -5'), "nsamples=-5 is no count"),
        (('"sha256": "0', '"sha256": "1'), "its fingerprint is"),
        (('"splits"', '"parts"'), "key 'splits' is missing"),
        (("{", ""), "is not a corpus index"),
    ],
)
def test_index_that_is_not_one(corpus, edit, reason):
    directory, _ = corpus
    path = directory / "index.json"
    path.write_text(path.read_text().replace(*edit))
    with pytest.raises(DataError, match=reason):
        CorpusIndex.load(directory)


def test_missing_index_and_split(corpus):
    directory, index = corpus
    with pytest.raises(DataError, match=r"nowhere.index.json cannot be read: no such file"):
        CorpusIndex.load(directory / "nowhere")
    with pytest.raises(DataError, match=r"has no shards in split val(.|\n)*Its splits are: train"):
        SequenceStream(directory, index, "val", 16, 0)


def test_skipping_shards_makes_another_corpus(corpus):
    directory, index = corpus
    (directory / SHARD).unlink()
    rest = index.without("train", [bad.name for bad in check_shards(directory, index, "train")])
    assert [shard.name for shard in rest.split("train")] == ["train-000000.tar", "train-000002.tar"]
    assert rest.fingerprint != index.fingerprint
    assert len(read_all(directory, rest)) > 0
    assert index.without("train", []).fingerprint == index.fingerprint
    with pytest.raises(DataError, match="all 3 shards of split train"):
        index.without("train", [shard.name for shard in index.split("train")])


def test_fingerprint_depends_on_content_alone(corpus, tmp_path_factory):
    _, index = corpus
    elsewhere = write_corpus(tmp_path_factory.mktemp("elsewhere"), random_documents(0))
    assert replace(elsewhere, name="other name").fingerprint == index.fingerprint
    assert (
        write_corpus(tmp_path_factory.mktemp("other"), random_documents(1)).fingerprint
        != index.fingerprint
    )


def test_importing_the_stream_imports_nothing_heavy():
    heavy = "torch webdataset tokenizers ray"
    code = (
        "import sys, scaling.data.read.stream, scaling.data.prepare.cached; "
        f"print(set('{heavy}'.split()) & set(sys.modules))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "set()\n"
    )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 700), max_size=5),
    st.integers(0, 4000),
    st.integers(0, 255),
    st.integers(0, 3000),
)
def test_the_short_walk_finds_what_webdataset_finds_or_leaves_it_to_it(
    tmp_path_factory, lengths, place, byte, cut
):
    """Reads tars as they are written here, and some with a byte changed or an end cut off."""
    directory = tmp_path_factory.mktemp("walk")
    np.save(
        directory / "tokens-000000.npy",
        np.array([(n, n) for n in lengths], dtype=np.int64).reshape(-1, 2),
    )
    (directory / "tokens-000000.ids").write_bytes(os.urandom(2 * sum(lengths)))
    write_shards.write_shard(
        directory, "shard", str(directory), "a.tar", "uint16", [(0, 0, len(lengths))]
    )
    content = (directory / "a.tar").read_bytes()
    spans = reader._own_spans(content, "u16")
    assert [content[begin:end] for begin, end in spans] == list(reader._documents(content, "u16"))
    damaged = bytearray(content[: len(content) - cut])
    if place < len(damaged):
        damaged[place] = byte
    spans = reader._own_spans(bytes(damaged), "u16")
    if spans is not None:
        theirs: list[bytes] = []
        with contextlib.suppress(reader._Damaged):
            theirs.extend(reader._documents(bytes(damaged), "u16"))
        found = [bytes(damaged[begin:end]) for begin, end in spans]
        # at a header whose sum is wrong tarfile ends, or complains
        assert found[: len(theirs)] == theirs
