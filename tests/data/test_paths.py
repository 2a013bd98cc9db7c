"""data.path alone chooses the kind of data; what nothing reads, what is not there and what is too
short is told at once."""

from __future__ import annotations

import gzip
import json
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.composition.compose import compose
from scaling.config.data_path import kind_of
from scaling.config.run_config import DataConfig, RunConfig, TokenizerConfig
from scaling.data.corpus import Corpus
from scaling.data.preflight import check_inputs, check_lengths
from scaling.data.prepare.by_position import cut_before
from scaling.data.prepare.cached import ensure_corpus
from scaling.data.prepare.inputs import local_files
from scaling.data.prepare.recipe import recipe_of
from scaling.data.prepare.sources import BETWEEN, find_source, read_pairs
from scaling.data.read.shard_reader import read_shard
from scaling.data.shards import CorpusIndex
from scaling.errors import ConfigError, DataError
from scaling.launch.run import drive
from scaling.runs.directory import RunDir
from tests.support.corpora import BYTE, random_documents, text_config, write_corpus

PAIRS = ("model=t5_tiny", "objective=seq2seq", "tokenizer=bpe_pairs")
SMALL = (
    "tokenizer=byte",
    "layout=single",
    "cluster.devices_per_node=1",
    "train.n_tokens=16k",
    "train.seq_len=64",
)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name, text in {
        "plain": "no ending\n",
        "a.txt": "text\n",
        "books/b.txt": "text\n",
        "a.jsonl": '{"text": "a"}\n',
        "pairs/p.tsv": "a\tb\n",
        "odd [1], x.txt": "text\n",
        "Big.JSONL.GZ": "",
        "a.parquet": "",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "shards").mkdir()
    write_corpus(tmp_path / "shards", random_documents(0))
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "train-000000.tar").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("shards", "shards"),
        ("books", "documents"),
        ("a.txt", "documents"),
        ("*.jsonl", "documents"),
        ("a.parquet", "documents"),
        ("Big.JSONL.GZ", "documents"),
        ("odd [1], x.txt", "documents"),
        ("plain", "text_files"),
        ("pairs", "text_pairs"),
        ("pairs/*.tsv", "text_pairs"),
    ],
)
def test_a_path_chooses_the_kind(place: Path, name: str, kind: str) -> None:
    assert kind_of(str(place / name)) == kind


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("hf:owner/name", "documents"),
        ("https://host/a.jsonl.zst", "documents"),
        ("https://host/shards", "shards"),
        ("gs://bucket/shards", "shards"),
        ("https://host/{00..09}.parquet,hf:owner/name", "documents"),
    ],
)
def test_a_url_chooses_the_kind_without_a_request(path: str, kind: str) -> None:
    assert kind_of(path) == kind


def test_the_path_alone_is_as_the_kind_and_the_path(place: Path) -> None:
    words = [f"data.path={place}/books"]
    chosen, said, short = (
        compose(words),
        compose(["data=documents", *words]),
        compose([f"data={place}/books"]),
    )
    assert chosen == said == short
    assert chosen.data.kind == "documents"
    pairs = compose([*PAIRS, f"data.path={place}/a.txt"])
    assert pairs.data.kind == "text_pairs", "the objective wants pairs"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["data=python_stdlib", "data.path=PLACE/books"],
            "data.path=.*/books is set, but only .* read it, and this is",
        ),
        (["data.path=PLACE/nothing"], "data.path='.*/nothing' names no file or folder"),
        (["data=PLACE/nothing"], "data.path='.*/nothing' names no file or folder"),
        (["data.path=PLACE/shards/index.json"], "is an index"),
        (["data.path=PLACE/unfinished"], "holds shards and no index.json"),
        (["data.path=PLACE/pairs"], "pairs are for objective=seq2seq"),
        (
            ["data=shards", "data.path=PLACE/shards", "data.val_fraction=0.1"],
            "data.val_fraction=0.1 is set, but only",
        ),
        (
            ["data=shards", "data.path=PLACE/shards", "data.val_path=PLACE/a.txt"],
            "data.val_path=.* is set, but only",
        ),
        (
            ["data.field=body"],
            "data.field=body is set, but only data=documents and data=mixture read it",
        ),
        (["data.max_files=2"], "data.max_files=2 is set, but only data=documents reads it"),
        (["data.val_path=x", "data.val_fraction=0.2"], "nothing reads it where data.val_path"),
        (
            [
                "data=mixture",
                "data.components=[{name: a, weight: 1, kind: python_stdlib, path: x}]",
            ],
            "component a of .*: data.path",
        ),
        (["data.cache_dir=''"], "it is blank"),
        (["data.cache_dir=' '"], "it is blank"),
        (["train.parent=foo"], "it is not HASH@STEP"),
        (["model=/a/b"], "model=/a/b is not an option of model"),
        (["tokenizer=/a/t.json"], "tokenizer=hf:/a/t.json"),
    ],
)
def test_what_nothing_reads_or_finds_is_refused(place: Path, words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        compose([word.replace("PLACE", str(place)) for word in words])


def test_a_mixture_hands_each_component_what_it_reads(place: Path) -> None:
    components = (
        f"[{{name: a, weight: 1, kind: python_stdlib}}, {{name: b, weight: 1, kind: shards, "
        f"path: {place}/shards}}]"
    )
    parts = compose(
        [
            "data=mixture",
            f"data.components={components}",
            "data.val_fraction=0.1",
            "data.shard_tokens=5000",
        ]
    ).data.component_sections()
    assert (parts["a"].val_fraction, parts["a"].shard_tokens) == (0.1, 5000)
    assert parts["b"].val_fraction == 0.05, "held out when it was prepared"


def test_a_run_that_noted_an_unread_key_still_opens(tmp_path: Path) -> None:
    config = compose([])
    run_dir = RunDir(tmp_path).create()
    noted = config.model_copy(
        update={"data": config.data.model_copy(update={"path": "/ignored/then"})}
    )
    run_dir.write_config(noted)
    assert run_dir.read_config() == noted


def test_new_keys_leave_hashes_as_they_were() -> None:
    data = compose([]).semantic()["data"]
    assert not {"val_target_path"} & data.keys()
    components = "[{name: a, weight: 1, kind: python_stdlib}]"
    (part,) = compose(["data=mixture", f"data.components={components}"]).semantic()["data"][
        "components"
    ]
    assert part.keys() == {"name", "weight", "kind", "path", "field", "max_files"}


@pytest.fixture(scope="module")
def small() -> RunConfig:
    return compose(SMALL)


def with_data(config: RunConfig, place: Path, **data: object) -> RunConfig:
    own = {
        key: value.replace("PLACE", str(place)) if isinstance(value, str) else value
        for key, value in data.items()
    }
    changed = DataConfig.model_validate({"cache_dir": f"{place}/cache"} | own)
    run = config.run.model_copy(update={"root": f"{place}/runs"})
    return config.model_copy(update={"data": changed, "run": run})


NONE = {"name": "a", "weight": 1, "kind": "documents", "path": "/nowhere/none"}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            {"kind": "documents", "path": "PLACE/none.jsonl"},
            "data.path='.*none.jsonl' matches nothing",
        ),
        (
            {"kind": "documents", "path": "PLACE/a.jsonl", "val_path": "PLACE/none.txt"},
            "data.val_path='.*none.txt' matches nothing",
        ),
        ({"kind": "text_files", "path": "PLACE/*.none"}, "data.path='.*none' matches no file"),
        ({"kind": "documents", "path": "PLACE/a.parquet"}, "nothing to read: 1 file without"),
        ({"kind": "shards", "path": "PLACE/none"}, "data.path='.*none' is not there"),
        ({"kind": "shards", "path": "PLACE/shards"}, "the corpus was tokenised by bpe with 1000"),
        (
            {"kind": "python_stdlib", "val_path": "PLACE/none"},
            "data.val_path='.*none' matches no file",
        ),
        (
            {"kind": "text_pairs", "path": "PLACE/a.txt", "target_path": "PLACE/none"},
            "data.target_path='.*none' is no file",
        ),
        ({"kind": "mixture", "components": [NONE]}, "none' matches nothing"),
    ],
)
@pytest.mark.parametrize("dry_run", [True, False])
def test_a_path_that_is_not_there_leaves_no_directory(
    place: Path, small: RunConfig, data: dict[str, object], said: str, dry_run: bool
) -> None:
    with pytest.raises((ConfigError, DataError), match=said):
        drive(with_data(small, place, **data).model_copy(update={"dry_run": dry_run}))
    assert not (place / "runs").exists()


def test_a_tokenizer_that_is_not_there_is_told(small: RunConfig) -> None:
    tokenizer = TokenizerConfig(kind="hf", vocab_size=300, name="/nowhere/tokenizer.json")
    with pytest.raises(ConfigError, match=r"tokenizer.name='/nowhere/tokenizer.json' is not there"):
        check_inputs(small.model_copy(update={"tokenizer": tokenizer}))


def test_a_url_is_not_asked(place: Path, small: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_, **__: asked.append(host) or [])
    check_inputs(with_data(small, place, kind="shards", path="https://host.invalid/x"))
    check_inputs(with_data(small, place, kind="documents", path="hf:owner/name"))
    assert asked == []


def test_a_folder_of_nothing_but_records_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n')
    (tmp_path / "b.JSON").write_text('{"text": "two"}\n')
    assert [path.name for path in local_files([str(tmp_path)])] == ["a.jsonl", "b.JSON"]
    (tmp_path / "a.py").write_text("x = 1\n")
    assert [path.name for path in local_files([str(tmp_path)])] == ["a.py"], (
        "beside sources such files are no documents"
    )


# One document, and own files to hold out.


def texts_of(directory: Path | str) -> dict[str, bytes]:
    """The text of each split, of a corpus of bytes."""
    index = CorpusIndex.load(directory)
    return {
        split: b"\0".join(
            bytes(read_shard(directory, index, shard)[:-1].astype("uint8")) for shard in shards
        )
        for split, shards in index.splits.items()
    }


@pytest.mark.parametrize("kind", ["text_files", "documents"])
def test_one_text_is_cut_by_position(tmp_path: Path, kind: str) -> None:
    lines = [f"line {number} of one text, ünïcode\n" for number in range(400)]
    (tmp_path / "input.txt").write_text("".join(lines))
    said: list[str] = []
    data = text_config(str(tmp_path / "input.txt"), tmp_path / "cache", kind=kind, val_fraction=0.1)
    found = texts_of(ensure_corpus(data, BYTE, lambda text, part: said.append(text)))
    assert found["train"] + found["val"] == "".join(lines).encode()
    assert found["train"].endswith(b"\n")
    assert len(found["val"]) == pytest.approx(0.1 * len("".join(lines).encode()), abs=40)
    assert "one document: the last 0.1 of it, by position, is held out" in said


@given(text=st.text(max_size=50), at=st.integers(0, 200))
def test_a_cut_is_between_characters(text: str, at: int) -> None:
    content = text.encode()
    place = cut_before(content, min(at, len(content)))
    assert 0 <= place <= min(at, len(content))
    assert content[:place].decode() + content[place:].decode() == text


def own_files(place: Path, kind: str) -> DataConfig:
    files = {
        "text_files": ("t/a.txt", "training text", "v/b.txt", "held-out text"),
        "documents": (
            "t/a.jsonl",
            json.dumps({"text": "training text"}),
            "v/b.jsonl",
            json.dumps({"text": "held-out text"}),
        ),
        "text_pairs": ("t/a.tsv", "training\ttext", "v/b.tsv", "held-out\ttext"),
        "python_stdlib": ("t/a.txt", "", "v/b.txt", "held-out text"),
    }
    path, text, val_path, val_text = files[kind]
    for name, content in ((path, text), (val_path, val_text)):
        (place / name).parent.mkdir(parents=True)
        (place / name).write_text(content + "\n")
    glob = "/*" if kind == "documents" else ""  # the others take a folder
    own = {
        "path": None if kind == "python_stdlib" else f"{place}/t{glob}",
        "val_path": f"{place}/v{glob}",
    }
    return text_config("", place / "cache", kind=kind, val_fraction=0.05, **own)


@pytest.mark.parametrize("kind", ["text_files", "documents", "text_pairs", "python_stdlib"])
def test_own_files_are_held_out_of_every_kind(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "few.py").write_text("x = 1\n")
    monkeypatch.setattr(
        "scaling.data.prepare.sources.python_files", lambda *_: iter([tmp_path / "few.py"])
    )
    tokenizer = (
        BYTE.model_copy(update={"special_tokens": "all", "vocab_size": 261})
        if kind == "text_pairs"
        else BYTE
    )
    directory = ensure_corpus(own_files(tmp_path, kind), tokenizer)
    index = CorpusIndex.load(directory)
    assert [shard.n_documents for shards in index.splits.values() for shard in shards] == [1, 1]
    assert texts_of(directory)["val"].startswith(b"held-out")


def test_pairs_may_be_compressed_alone_and_in_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    folder.mkdir()
    for name, pair in {"a.tsv.gz": b"one\teins\n", "b.TSV.GZ": b"two\tzwei\n"}.items():
        (folder / name).write_bytes(gzip.compress(pair))

    def sources(path: Path) -> list[str]:
        data = DataConfig(kind="text_pairs", path=str(path), cache_dir=str(tmp_path))
        return [text.partition(BETWEEN)[0] for _, text in read_pairs(find_source(data))]

    assert sources(folder) == ["one", "two"]
    assert sources(folder / "b.TSV.GZ") == ["two"]
    (folder / "a.tsv.gz").write_bytes(gzip.compress(b"one\teins\n")[:-6])
    with pytest.raises(DataError, match=r"a\.tsv\.gz cannot be read: Compressed file ended"):
        sources(folder)


def test_an_empty_input_of_a_run_is_named_by_its_own_key(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    path = str(tmp_path / "empty.txt")
    data = DataConfig(kind="documents", path=path, cache_dir=str(tmp_path))
    with pytest.raises(ConfigError) as raised:
        recipe_of(data, BYTE, None, {})
    assert str(raised.value.where).startswith("data.path=")
    assert "suffixes" not in str(raised.value)


def test_targets_in_files_of_their_own_can_be_held_out(tmp_path: Path) -> None:
    for name, text in {
        "a.de": "eins\nzwei\n",
        "a.en": "one\ntwo\n",
        "b.de": "drei\n",
        "b.en": "three\n",
    }.items():
        (tmp_path / name).write_text(text)
    own = {"target_path": f"{tmp_path}/a.en", "val_path": f"{tmp_path}/b.de", "val_fraction": 0.05}
    with pytest.raises(
        ValueError, match=r"data.target_path is set and data.val_target_path is not"
    ):
        text_config(f"{tmp_path}/a.de", tmp_path / "cache", kind="text_pairs", **own)
    data = text_config(
        f"{tmp_path}/a.de",
        tmp_path / "cache",
        kind="text_pairs",
        **own,
        val_target_path=f"{tmp_path}/b.en",
    )
    tokenizer = BYTE.model_copy(update={"special_tokens": "all", "vocab_size": 261})
    index = CorpusIndex.load(ensure_corpus(data, tokenizer))
    assert {
        split: sum(s.n_documents for s in shards) for split, shards in index.splits.items()
    } == {"train": 2, "val": 1}


# Long enough.


def too_short(small: RunConfig, data: DataConfig, seq_len: int) -> str:
    config = small.model_copy(
        update={"data": data, "train": small.train.model_copy(update={"seq_len": seq_len})}
    )
    with pytest.raises(ConfigError) as caught:
        check_lengths(config, Corpus.open(ensure_corpus(data, config.tokenizer)))
    return str(caught.value)


def short_texts(place: Path, n: int, length: int) -> str:
    for number in range(n):
        (place / f"{number:03d}.txt").write_text(f"{number:03d}" + "x" * (length - 3))
    return f"{place}/0*.txt"


def test_a_held_out_part_that_is_too_short_is_blamed_on_its_fraction(
    tmp_path: Path, small: RunConfig
) -> None:
    said = too_short(
        small, text_config(short_texts(tmp_path, 40, 99), tmp_path / "c", val_fraction=0.05), 500
    )
    assert "the held-out part has" in said
    assert "one sequence takes 501 (train.seq_len=500)" in said
    assert "data.val_fraction=0.05 of documents with 4000 tokens in all" in said
    assert "data.val_fraction=0.25 or more" in said
    assert "data.val_path" in said


def test_other_parts_that_are_too_short_are_blamed_on_what_made_them(
    tmp_path: Path, small: RunConfig
) -> None:
    pattern = short_texts(tmp_path, 40, 99)
    assert "data.shard_tokens=100, the longest shard has 100" in too_short(
        small, text_config(pattern, tmp_path / "c", val_fraction=0.2, shard_tokens=100), 150
    )
    assert "the training part has 4000 tokens in 40 documents" in too_short(
        small,
        text_config(
            pattern, tmp_path / "c", val_fraction=0.05, val_path=short_texts_beside(tmp_path)
        ),
        5000,
    )
    assert "(data.val_path=" in too_short(
        small,
        text_config(
            pattern, tmp_path / "c", val_fraction=0.05, val_path=short_texts_beside(tmp_path)
        ),
        1000,
    )


def short_texts_beside(place: Path) -> str:
    (place / "held.txt").write_text("y" * 50)
    return f"{place}/held.txt"


def test_shards_that_are_too_short_are_found_before_the_run_has_a_directory(
    place: Path, small: RunConfig
) -> None:
    held_out = write_corpus(place / "shards", random_documents(9, n_shards=1), split="val")
    train = write_corpus(place / "shards", random_documents(0))
    replace(train, splits={**train.splits, **held_out.splits}).save(place / "shards")
    sizes = {
        "tokenizer": TokenizerConfig(kind="bpe", vocab_size=1000),
        "train": small.train.model_copy(update={"seq_len": 300}),
    }
    config = with_data(small, place, kind="shards", path="PLACE/shards").model_copy(update=sizes)
    with pytest.raises(ConfigError, match=rf"one sequence takes 301 .*data.path={place}/shards"):
        drive(config)
    assert not (place / "runs").exists()
