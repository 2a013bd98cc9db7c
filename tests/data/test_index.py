"""index.json from a stranger: whatever is in it, it is read or refused, and a change of it is
named."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.data import index_file
from scaling.data.corpus import Corpus
from scaling.data.io.fetch import fetch_whole
from scaling.data.mixture import Component, read_mixture, write_mixture
from scaling.data.read.stream import check_shards
from scaling.data.sequence_order import SequenceOrder
from scaling.data.shards import CorpusIndex
from scaling.errors import DataError
from scaling.runs.directory import RunDir
from tests.support.corpora import random_documents, write_corpus

WEIRD: list[Any] = [
    0,
    1,
    -1,
    2**53 + 1,
    2**63,
    2**70,
    -(2**70),
    10**400,
    1.0,
    1e30,
    math.nan,
    math.inf,
    True,
    False,
    None,
    "",
    "1",
    "x" * 300,
    "../a.tar",
    "/a.tar",
    "pipe:id",
    "a\nb",
    "\x1b[31m",
    "\ud800",
    "0" * 64,
    "A" * 64,
    [],
    {},
    [[]],
    [1, 2],
    {"a": 1},
    json.loads("[" * 400 + "]" * 400),
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("corpus")
    write_corpus(directory, random_documents(0))
    return directory


def changed(
    corpus: Path, to: Path, change: Callable[[dict[str, Any]], None], *, sealed: bool
) -> Path:
    """A copy of the index with a change; without its seals as it was before there were any."""
    data = json.loads((corpus / "index.json").read_text())
    if not sealed:
        del data["seal"]
        for shard in data["splits"]["train"]["shardlist"]:
            del shard["seal"]
    change(data)
    (to / "index.json").write_text(json.dumps(data))
    return to


def entry(data: dict[str, Any], number: int = 1) -> dict[str, Any]:
    found: dict[str, Any] = data["splits"]["train"]["shardlist"][number]
    return found


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a tree of JSON."""
    yield path
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, one in inner:
        yield from places(one, (*path, key))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_whatever_stands_in_an_index_is_read_or_refused(
    corpus: Path, tmp_path_factory: pytest.TempPathFactory, data: Any
) -> None:
    tree = {"index": json.loads((corpus / "index.json").read_text())}
    if data.draw(st.booleans()):
        changed(corpus, to := tmp_path_factory.mktemp("plain"), lambda found: None, sealed=False)
        tree = {"index": json.loads((to / "index.json").read_text())}
    for _ in range(data.draw(st.integers(1, 3))):
        *path, last = data.draw(st.sampled_from([place for place in places(tree) if place]))
        holder: Any = tree
        for key in path:
            holder = holder[key]
        if data.draw(st.booleans()) and path:
            del holder[last]
        else:
            holder[last] = copy.deepcopy(data.draw(st.sampled_from(WEIRD)))
    directory = tmp_path_factory.mktemp("index")
    (directory / "index.json").write_text(json.dumps(tree["index"]))
    try:
        index = CorpusIndex.load(directory)
    except DataError as error:
        str(error).encode()  # a lone surrogate in the text could not be printed
        return
    for split, shards in index.splits.items():  # what is accepted can be reckoned with
        order = SequenceOrder(shards, 16, 0)
        if order.n_sequences:
            assert order.locate(order.n_sequences - 1)
        if shards:
            check_shards(directory, index, split)


@settings(max_examples=100, deadline=None)
@given(
    content=st.binary(max_size=200)
    | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass"))
)
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    directory = tmp_path_factory.mktemp("index")
    (directory / "index.json").write_bytes(content)
    with pytest.raises(DataError, match="is not a corpus index"):
        CorpusIndex.load(directory)


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"a":' * 100_000, "[" * 100_000 + "]" * 100_000]
)
@pytest.mark.parametrize(
    ("name", "read"), [("index.json", CorpusIndex.load), ("mixture.json", read_mixture)]
)
def test_brackets_without_end_are_told(
    tmp_path: Path, name: str, read: Callable[[Path], Any], content: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match="brackets are nested too deeply"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("n_tokens", 2**70, "train-000001.tar: n_tokens=1180591620717411303424 is no count"),
        ("n_tokens", True, "train-000001.tar: n_tokens=True is no count"),
        ("n_bytes", -1, "n_bytes=-1 is no count"),
        ("filesize", 1.0, "filesize=1.0 is no count"),
        ("sha256", "../" * 21 + "a", "not 64 hexadecimal digits"),
        ("url", "train-000000.tar", "shard train-000000.tar is listed twice"),
    ],
)
def test_what_no_shard_can_be_is_refused(
    corpus: Path, tmp_path: Path, key: str, value: Any, said: str
) -> None:
    directory = changed(
        corpus, tmp_path, lambda data: entry(data).update({key: value}), sealed=False
    )
    with pytest.raises(DataError, match=said):
        CorpusIndex.load(directory)


@pytest.mark.parametrize("n_tokens", [0, 10_000])
def test_a_count_that_the_size_belies_is_refused_without_a_seal(
    corpus: Path, tmp_path: Path, n_tokens: int
) -> None:
    directory = changed(
        corpus, tmp_path, lambda data: entry(data).update(n_tokens=n_tokens), sealed=False
    )
    with pytest.raises(
        DataError, match=f"shard train-000001.tar cannot hold n_tokens={n_tokens} of n_documents=5"
    ):
        CorpusIndex.load(directory)


@pytest.mark.parametrize("key", ["nsamples", "n_tokens", "n_bytes", "filesize"])
def test_a_count_that_was_changed_is_named(corpus: Path, tmp_path: Path, key: str) -> None:
    was = CorpusIndex.load(corpus)

    def one_more(data: dict[str, Any]) -> None:
        entry(data)[key] += 1

    with pytest.raises(
        DataError, match=f"entry of shard 'train-000001.tar' of split train was changed: .*{key}="
    ):
        CorpusIndex.load(changed(corpus, tmp_path, one_more, sealed=True))
    unsealed = CorpusIndex.load(changed(corpus, tmp_path, one_more, sealed=False))
    assert unsealed.fingerprint != was.fingerprint, "a resume is refused"
    assert unsealed.content_fingerprint == was.content_fingerprint


def test_what_else_was_changed_is_refused(corpus: Path, tmp_path: Path) -> None:
    def other_end(data: dict[str, Any]) -> None:
        data["tokenizer"]["eot_id"] = 7

    with pytest.raises(DataError, match="its tokenizer, its dtype, its name or its list of shards"):
        CorpusIndex.load(changed(corpus, tmp_path, other_end, sealed=True))
    unsealed = CorpusIndex.load(changed(corpus, tmp_path, other_end, sealed=False))
    assert unsealed.fingerprint != CorpusIndex.load(corpus).fingerprint


def test_an_index_without_seals_opens_as_the_same_corpus(corpus: Path, tmp_path: Path) -> None:
    old = changed(corpus, tmp_path, lambda data: None, sealed=False)
    assert CorpusIndex.load(old) == CorpusIndex.load(corpus)
    assert CorpusIndex.load(old).fingerprint == CorpusIndex.load(corpus).fingerprint


def test_a_run_names_what_changed_in_its_corpus(corpus: Path, tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "run").create()
    run_dir.write_corpus(Corpus.open(corpus).facts())
    assert run_dir.corpus_changes(Corpus.open(corpus).facts()) == ""
    (tmp_path / "other").mkdir()
    other = changed(
        corpus, tmp_path / "other", lambda data: entry(data).update(n_tokens=6), sealed=False
    )
    was = sum(shard.n_tokens for shard in CorpusIndex.load(corpus).split("train"))
    now = was - CorpusIndex.load(corpus).split("train")[1].n_tokens + 6
    assert (
        run_dir.corpus_changes(Corpus.open(other).facts())
        == f"train.n_tokens was {was} and is {now}"
    )
    (run_dir.path / "corpus.json").write_text("[" * 10)
    assert run_dir.corpus_changes(Corpus.open(other).facts()) == "", "it is only a record"


def test_a_file_without_end_is_read_to_its_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "index.json").write_text(" " * 2000)
    monkeypatch.setattr(index_file, "MAX_INDEX_BYTES", 1000)
    with pytest.raises(DataError, match="it has more than 1000 bytes"):
        CorpusIndex.load(tmp_path)
    assert len(fetch_whole(tmp_path / "index.json", 2000)) == 2000


def test_a_mixture_from_the_time_before_counts_opens(corpus: Path, tmp_path: Path) -> None:
    index = CorpusIndex.load(corpus)
    places = [
        Component(name, str(corpus), fingerprint, 1.0)
        for name, fingerprint in (("a", index.content_fingerprint), ("b", index.fingerprint))
    ]
    opened = Corpus.open(write_mixture(tmp_path, places))
    assert {part.component.fingerprint for part in opened.parts} == {index.fingerprint}
    assert opened.content_fingerprint != opened.fingerprint
