"""Shards from a server: fetched ahead, kept within a bound, shared by processes, and named when
they keep a run waiting."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from scaling.data.io.http import Patience
from scaling.data.objective import causal_lm
from scaling.data.read import cache as shard_cache
from scaling.data.read.loader import Loader
from scaling.data.read.source import ShardSource, Streaming
from scaling.data.read.stream import SequenceStream
from scaling.data.shards import CorpusIndex
from scaling.errors import DataError
from tests.support.corpora import random_documents, write_corpus
from tests.support.web_server import Web, serving

N_SHARDS = 40


@pytest.fixture
def corpus(tmp_path) -> tuple[Path, CorpusIndex]:
    directory = tmp_path / "corpus"
    directory.mkdir()
    return directory, write_corpus(directory, random_documents(0, n_shards=N_SHARDS))


@pytest.fixture
def web(corpus, monkeypatch):
    with serving(monkeypatch) as web:
        yield web.add(corpus[0])


def open_stream(location, index, **options) -> SequenceStream:
    return SequenceStream(location, index, "train", 16, seed=5, read_ahead=True, **options)


def streaming(tmp_path: Path, cache_bytes: int = 10**9, **patience: float) -> Streaming:
    return Streaming(tmp_path / "cache", cache_bytes, Patience(**patience))


def shards_asked(web: Web) -> list[str]:
    return [path for method, path, _ in web.asked if method == "GET" and path.endswith(".tar")]


def wait_until(condition, seconds: float = 10.0) -> None:
    end_s = time.monotonic() + seconds
    while not condition() and time.monotonic() < end_s:
        time.sleep(0.01)
    assert condition()


@pytest.mark.parametrize("cache_bytes", [0, 50_000, 10**9])
def test_a_server_gives_the_same_sequences_whatever_is_kept(corpus, web, tmp_path, cache_bytes):
    directory, index = corpus
    ks = np.arange(200)
    with (
        open_stream(directory, index) as local,
        open_stream(web.url, index, streaming=streaming(tmp_path, cache_bytes)) as remote,
    ):
        for begin in range(0, 200, 8):
            np.testing.assert_array_equal(
                local.read(ks[begin : begin + 8]), remote.read(ks[begin : begin + 8])
            )


def test_the_next_window_is_fetched_while_this_one_is_read(corpus, web, tmp_path):
    _, index = corpus
    with open_stream(web.url, index, streaming=streaming(tmp_path)) as stream:
        window = stream.order.window_of(0)
        here, ahead = (
            set(stream.order.shards_of(w)) for w in (window, stream.order.window_after(window))
        )
        stream.read(np.arange(1))
        wait_until(lambda: len(shards_asked(web)) >= 1 + len(ahead))
        asked = {int(path[-10:-4]) for path in shards_asked(web)}
        assert ahead <= asked
        assert len(asked & here) == 1
        first_of_next = sum(int(stream.order.sequences_S[shard]) for shard in here)
        before = len(shards_asked(web))
        stream.read(np.arange(first_of_next, first_of_next + 50))
        later = {int(path[-10:-4]) for path in shards_asked(web)[before:]}
        assert not later & ahead


def test_without_a_cache_what_is_fetched_ahead_waits_in_memory(corpus, web, tmp_path):
    _, index = corpus
    shards = index.split("train")[:3]
    source = ShardSource(web.url, streaming(tmp_path, 0))
    source.ahead(shards)
    wait_until(lambda: len(shards_asked(web)) == 3)
    contents = [source.read(shard) for shard in shards]
    assert [len(content) for content in contents] == [shard.size_bytes for shard in shards]
    assert len(shards_asked(web)) == 3
    assert not (tmp_path / "cache").exists()


def test_a_second_epoch_and_a_second_process_ask_the_cache(corpus, web, tmp_path):
    _, index = corpus
    for _ in range(2):
        source = ShardSource(web.url, streaming(tmp_path))
        assert all(source.read(shard) for shard in index.split("train"))
    assert len(shards_asked(web)) == N_SHARDS
    code = (
        "import sys\nfrom scaling.data.read.source import *\nfrom scaling.data.shards import "
        "CorpusIndex\n"
        "index = CorpusIndex.load(sys.argv[1])\nsource = ShardSource(sys.argv[1], "
        "Streaming(Path(sys.argv[2]), 10**9))\n"
        "print(sum(len(source.read(shard)) for shard in index.split('train')))"
    )
    command = [sys.executable, "-c", code, web.url, str(tmp_path / "cache")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    total = sum(shard.size_bytes for shard in index.split("train"))
    assert [process.communicate(timeout=60)[0] for process in processes] == [f"{total}\n"] * 2
    assert len(shards_asked(web)) == N_SHARDS


def test_a_copy_that_was_verified_and_then_damaged_is_fetched_again(corpus, web, tmp_path):
    directory, index = corpus
    with (
        open_stream(directory, index) as local,
        open_stream(web.url, index, streaming=streaming(tmp_path), max_resident_shards=1) as remote,
    ):
        ks = np.arange(remote.n_sequences)
        np.testing.assert_array_equal(remote.read(ks), local.read(ks))
        copies = list((tmp_path / "cache").glob("*.tar"))
        for copy in copies:
            content = bytearray(copy.read_bytes())
            content[700] ^= 1
            copy.write_bytes(content)
        np.testing.assert_array_equal(remote.read(ks), local.read(ks))
        assert len(shards_asked(web)) == 2 * len(copies)


def test_two_that_want_a_shard_at_once_fetch_it_once(corpus, web, tmp_path):
    _, index = corpus
    (shard,) = index.split("train")[:1]
    web.faults[f"/{shard.name}"] = [0.01]  # slow enough for the other to come in between
    sources = [ShardSource(web.url, streaming(tmp_path)) for _ in range(3)]
    for source in sources:
        source.ahead([shard])
    assert len({source.read(shard) for source in sources}) == 1
    assert shards_asked(web) == [f"/{shard.name}"]


def test_the_cache_stays_within_its_bound_and_keeps_what_was_used_last(corpus, web, tmp_path):
    _, index = corpus
    shards = index.split("train")
    bound = 3 * max(shard.size_bytes for shard in shards)
    source = ShardSource(web.url, streaming(tmp_path, bound))
    for number, shard in enumerate(shards[:12]):
        source.read(shard)
        source.read(shards[0])
        sizes = [path.stat().st_size for path in (tmp_path / "cache").glob("*.tar")]
        assert sum(sizes) <= bound
        assert number < 2 or len(sizes) == 3
    assert shards_asked(web).count(f"/{shards[0].name}") == 1


def test_no_more_is_fetched_ahead_than_the_cache_holds_beside_what_is_used(corpus, web, tmp_path):
    _, index = corpus
    shards = index.split("train")
    source = ShardSource(
        web.url, streaming(tmp_path, sum(shard.size_bytes for shard in shards[:5]))
    )
    source.ahead(shards[2:10], beside=shards[:2])
    wait_until(lambda: len(list((tmp_path / "cache").glob("*.tar"))) == 3)
    time.sleep(0.05)
    assert sorted(shards_asked(web)) == [f"/{shard.name}" for shard in shards[2:5]]


@pytest.mark.parametrize("damage", [b"", b"x" * 100])
def test_a_damaged_copy_is_fetched_anew(corpus, web, tmp_path, damage):
    _, index = corpus
    shard = index.split("train")[0]
    source = ShardSource(web.url, streaming(tmp_path))
    expected = source.read(shard)
    (copy,) = (tmp_path / "cache").glob("*.tar")
    copy.write_bytes(damage)
    assert source.read(shard) == expected
    assert copy.read_bytes() == expected


def test_copies_in_the_making_of_the_dead_are_removed(corpus, web, tmp_path, monkeypatch):
    _, index = corpus
    (tmp_path / "cache").mkdir()
    left = tmp_path / "cache" / f".{'0' * 64}.tar.123"
    left.write_bytes(b"x" * 10**6)
    os.utime(left, (0, 0))
    source = ShardSource(web.url, streaming(tmp_path, 10**6))
    source.read(index.split("train")[0])
    assert not left.exists()


def test_a_cache_that_cannot_be_written_is_named_with_the_keys_that_move_it(corpus, web, tmp_path):
    _, index = corpus
    (tmp_path / "cache").touch()
    source = ShardSource(web.url, streaming(tmp_path))
    with pytest.raises(
        DataError, match=r"cannot be kept in .*/cache: (.|\n)*data.stream_cache_bytes=0 keeps none"
    ):
        source.read(index.split("train")[0])


def test_a_wait_for_a_shard_is_told_with_its_name(corpus, web, tmp_path):
    _, index = corpus
    with open_stream(web.url, index, streaming=streaming(tmp_path, 0)) as stream:
        first = index.split("train")[int(stream.order.locate(0)[0])].name
        web.faults[f"/{first}"] = [503, 503, 503]
        told: list[tuple[float, list[str]]] = []
        options = {
            "global_batch_size": 1,
            "dp_rank": 0,
            "dp": 1,
            "micro_batch_size": 1,
            "start_sequence": 0,
        }
        with Loader(
            stream,
            make_batch=causal_lm,
            on_stall=lambda s, what: told.append((s, what)),
            stall_after_s=0.1,
            **options,
        ) as loader:
            next(loader)
            assert loader.last_wait_s > 0.5
    assert {name for _, names in told for name in names} == {f"{web.url}/{first}"}
    seconds = [s for s, _ in told]
    assert seconds[0] >= 0.1
    assert all(later > 1.9 * earlier for earlier, later in itertools.pairwise(seconds))
    assert stream.waiting_for() == []


def test_a_server_that_stays_away_ends_the_run_with_the_shards_name(corpus, web, tmp_path):
    _, index = corpus
    for shard in index.split("train"):
        web.faults[f"/{shard.name}"] = [500] * 100
    with (
        open_stream(web.url, index, streaming=streaming(tmp_path, give_up_s=0.2)) as stream,
        pytest.raises(
            DataError,
            match=r"shard train-\d{6}.tar is missing or damaged: .*HTTP 500 .* "
            r"\(the last of \d+ attempts",
        ),
    ):
        stream.read(np.arange(1))


def test_locks_are_few(corpus, web, tmp_path, monkeypatch):
    monkeypatch.setattr(shard_cache, "_LOCKS", 4)
    source = ShardSource(web.url, streaming(tmp_path))
    for shard in corpus[1].split("train"):
        source.read(shard)
    assert len(list((tmp_path / "cache").glob(".lock-*"))) <= 5
