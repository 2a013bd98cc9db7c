"""Ways to spoil a corpus, its inputs and its places, each with what a user does next. Named as in
docs/reliability_data.md."""

from __future__ import annotations

import contextlib
import gzip
import os
import pickle
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from scaling import prepare
from scaling.composition.compose import compose
from scaling.config.run_config import RunConfig
from scaling.data.corpus import Corpus
from scaling.data.io import http, remote
from scaling.data.io.http import Patience
from scaling.data.read import source as shard_source
from scaling.data.shards import CorpusIndex
from scaling.errors import ScalingError
from scaling.launch import run as driver
from scaling.runs.directory import RunDir
from tests.support.corpora import (
    VOCAB_SIZE,
    document_members,
    random_documents,
    tar_bytes,
    with_shard,
    write_corpus,
    write_shard,
)
from tests.support.prepare_inputs import json_lines, texts
from tests.support.web_server import Web

SHARD = "train-000001.tar"


@dataclass
class Place:
    """A directory with sound shards, in `DIR`, and beside it room for the rest; `web` serves it
    when it is asked to."""

    root: Path
    web: Web
    patch: pytest.MonkeyPatch

    @property
    def shards(self) -> Path:
        return self.root / "shards"

    @property
    def index(self) -> CorpusIndex:
        return CorpusIndex.load(self.shards)

    def put(self, members: dict[str, bytes] | bytes, **counts: int) -> None:
        """Another tar in a shard's place, with an index that agrees in size and checksum."""
        old = self.index.split("train")[1]
        content = members if isinstance(members, bytes) else tar_bytes(members)
        shard = write_shard(self.shards, SHARD, content, old.n_documents, old.n_tokens)
        self.save(with_shard(self.index, replace(shard, **counts)))

    def save(self, index: CorpusIndex) -> None:
        replace(index, splits={**self.index.splits, **index.splits}).save(self.shards)

    def edit(self, old: str, new: str) -> None:
        path = self.shards / "index.json"
        path.write_text(path.read_text().replace(old, new))

    def served(self) -> str:
        self.web.add(self.shards)
        return self.web.url

    def read(self, location: object = None, **changes: object) -> str:
        """What a run on the shards says: it checks them, and reads every training sequence."""
        data = {
            "path": str(location or self.shards),
            "cache_dir": str(self.root / "cache"),
            **changes,
        }
        config = CONFIG.model_copy(update={"data": CONFIG.data.model_copy(update=data)})
        run_dir = RunDir(self.root / "run").create()
        try:
            directory, skipped = driver.prepare_corpus(config, run_dir, Console(quiet=True))
            with Corpus.open(directory, skipped).stream(config, "train") as stream:
                stream.read(np.arange(stream.n_sequences))
        except ScalingError as error:
            return f"{type(error).__name__}: {error}"
        return "nothing"

    def prepare(self, capsys: pytest.CaptureFixture[str], *words: str) -> str:
        """What `scaling.prepare` says, but for its progress."""
        assert prepare.main([*words, "tokenizer=byte", "processes=1"]) != 0
        said = re.search(r"^\w+Error: .*", capsys.readouterr().err, flags=re.DOTALL | re.MULTILINE)
        return said.group() if said else "nothing"


CONFIG: RunConfig = compose(
    ["data=shards", "data.path=DIR", f"tokenizer.vocab_size={VOCAB_SIZE}", "train.seq_len=16"]
)


def make(root: Path) -> None:
    (root / "shards").mkdir()
    held_out = write_corpus(root / "shards", random_documents(9, n_shards=1), split="val")
    train = write_corpus(root / "shards", random_documents(0))
    replace(train, splits={**train.splits, **held_out.splits}).save(root / "shards")


@contextlib.contextmanager
def small_disk(path: Path, kilobytes: int) -> Iterator[Path]:
    """A file system of its own."""
    path.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system takes root")
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no small file system can be mounted here: {done.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """Drop root's right to read and write everything."""
    was = os.geteuid()
    if was == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(was)


def impatient(place: Place) -> dict[str, Any]:
    """Servers are borne with for a moment, not for minutes."""
    place.patch.setattr(http, "_FIRST_DELAY_S", 0.01)
    place.patch.setattr(remote, "AT_FIRST", Patience(give_up_s=0.3))
    place.patch.setattr(shard_source, "AT_FIRST", Patience(give_up_s=0.3))
    return {"give_up_s": 0.3, "stream_cache_bytes": 0}


Case = Callable[[Place, pytest.CaptureFixture[str]], str]
CASES: dict[str, Case] = {}


def case(name: str) -> Callable[[Case], Case]:
    def register(function: Case) -> Case:
        CASES[name] = function
        return function

    return register


@case("a shard is missing")
def _(place: Place, capsys: pytest.CaptureFixture[str]) -> str:
    (place.shards / SHARD).unlink()
    return place.read()


@case("a shard of no bytes")
def _(place: Place, capsys: pytest.CaptureFixture[str]) -> str:
    (place.shards / SHARD).write_bytes(b"")
    return place.read()


@case("a truncated tar")
def _(place: Place, capsys: pytest.CaptureFixture[str]) -> str:
    os.truncate(place.shards / SHARD, 5120)
    return place.read()


@case("a truncated tar whose index agrees")
def _(place: Place, capsys: pytest.CaptureFixture[str]) -> str:
    place.put((place.shards / SHARD).read_bytes()[:700])
    return place.read()


@case("an empty tar whose index agrees")
def _(place: Place, capsys: pytest.CaptureFixture[str]) -> str:
    place.put({})
    return place.read()


@case("a shard of no bytes whose index agrees")
def _(place: Place, capsys: pytest.CaptureFixture[str]) -> str:
    place.put(b"")
    return place.read()


@case("no tar at all, whose index agrees")
def _(place: Place, capsys: pytest.CaptureFixture[str]) -> str:
    place.put(gzip.compress(os.urandom(2000)))
    return place.read()


@case("a flipped bit: a wrong checksum")
def _(place: Place, capsys: pytest.CaptureFixture[str]) -> str:
    content = bytearray((place.shards / SHARD).read_bytes())
    content[600] ^= 1
    (place.shards / SHARD).write_bytes(content)
    return place.read()


@case("an index that disagrees with the shard")
def _(place: Place, capsys: pytest.CaptureFixture[str]) -> str:
    index = place.index
    shards = tuple(replace(shard, n_documents=6) for shard in index.split("train"))
    place.save(replace(index, splits={"train": shards}))
    return place.read()


@case("a count in the index that was changed")
def _(place: Place, capsys: pytest.CaptureFixture[str]) -> str:
    place.edit('"n_tokens": 2', '"n_tokens": 1')
    return place.read()


@case("a count that no shard can have")
def _(place: Place, capsys: pytest.CaptureFixture[str]) -> str:
    place.edit('"n_tokens": 2', f'"n_tokens": {2**70}')
    return place.read()


@case("an index of nothing but brackets")
def _(place: Place, capsys: pytest.CaptureFixture[str]) -> str:
    (place.shards / "index.json").write_text("[" * 100_000)
    return place.read()


@case("tokens of another type than the index says")
def _(place: Place, capsys: pytest.CaptureFixture[str]) -> str:
    place.save(replace(place.index, dtype="uint32"))
    return place.read()


@case("a type that no token has")
def _(place: Place, capsys: pytest.CaptureFixture[str]) -> str:
    place.edit('"dtype": "uint16"', '"dtype": "float32"')
    return place.read()


@case("half a token")
def _(place: Place, capsys: pytest.CaptureFixture[str]) -> str:
    place.put({"000000000.u16": b"odd"})
    return place.read()


@case("a token id beyond the vocabulary")
def _(place: Place, capsys: pytest.CaptureFixture[str]) -> str:
    documents = [np.full(20, 7)] * 4 + [np.full(20, VOCAB_SIZE)]
    place.put(document_members(documents), n_documents=5, n_tokens=105)
    return place.read()


@case("a pickle in the tar")
def _(place: Place, capsys: pytest.CaptureFixture[str]) -> str:
    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(place.root / "unpickled"),)

    place.put({"000000000.pyd": pickle.dumps(Bomb())})
    said = place.read()
    assert not (place.root / "unpickled").exists()
    return said


@case("a path out of the tar")
def _(place: Place, capsys: pytest.CaptureFixture[str]) -> str:
    place.put({"../../escaped.u16": b"\1\0"})
    before = sorted(place.root.rglob("*"))
    said = place.read()
    assert (
        sorted(
            path
            for path in place.root.rglob("*")
            if place.root / "run" not in [path, *path.parents]
        )
        == before
    )
    return said


@case("a path out of the index")
def _(place: Place, capsys: pytest.CaptureFixture[str]) -> str:
    place.edit(SHARD, f"../{SHARD}")
    return place.read()


@case("an index that is cut off")
def _(place: Place, capsys: pytest.CaptureFixture[str]) -> str:
    os.truncate(place.shards / "index.json", 300)
    return place.read()


@case("an index whose shards were exchanged")
def _(place: Place, capsys: pytest.CaptureFixture[str]) -> str:
    place.edit(place.index.split("train")[1].sha256, "0" * 64)
    return place.read()


@case("shards of another tokenizer")
def _(place: Place, capsys: pytest.CaptureFixture[str]) -> str:
    index = place.index
    place.save(replace(index, tokenizer=replace(index.tokenizer, vocab_size=500)))
    return place.read()


@case("shards that are all too short")
def _(place: Place, capsys: pytest.CaptureFixture[str]) -> str:
    for shard in ("train-000000.tar", SHARD, "train-000002.tar"):
        (place.shards / shard).unlink()
    held_out = write_corpus(place.shards, [[np.arange(1, 9)]], "val")
    index = write_corpus(place.shards, [[np.arange(1, 9)]])
    replace(index, splits={**index.splits, **held_out.splits}).save(place.shards)
    return place.read()


@case("a shard that may not be read")
def _(place: Place, capsys: pytest.CaptureFixture[str]) -> str:
    for path in [place.root, *place.root.parents]:
        if path.stat().st_uid == os.geteuid() and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o055)
    (place.root / "run").mkdir()
    (place.root / "run").chmod(0o777)
    (place.shards / SHARD).chmod(0)
    with nobody():
        return place.read()


@case("a cache that may not be written")
def _(place: Place, capsys: pytest.CaptureFixture[str]) -> str:
    url = place.served()
    for path in [place.root, *place.root.parents]:
        if path.stat().st_uid == os.geteuid() and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o055)
    for name, mode in (("run", 0o777), ("cache", 0o755)):
        (place.root / name).mkdir()
        (place.root / name).chmod(mode)
    if os.geteuid() != 0:
        (place.root / "cache").chmod(0o555)
    with nobody():
        return place.read(url)


@case("a full disk under the cache of remote shards")
def _(place: Place, capsys: pytest.CaptureFixture[str]) -> str:
    with small_disk(place.root / "cache", 12):
        return place.read(place.served())


@case("a full disk under a preparation")
def _(place: Place, capsys: pytest.CaptureFixture[str]) -> str:
    (place.root / "in.jsonl").write_bytes(json_lines(texts(500)))
    with small_disk(place.root / "out", 100) as out:
        words = (f"inputs={place.root}/in.jsonl", f"out={out}/shards")
        said = place.prepare(capsys, *words)
        subprocess.run(["mount", "-o", "remount,size=20m", str(out)], check=True)
        assert prepare.main([*words, "tokenizer=byte", "processes=1"]) == 0  # nothing was lost
    return said


@case("HTTP 404")
def _(place: Place, capsys: pytest.CaptureFixture[str]) -> str:
    url = place.served()
    del place.web.files[f"/{SHARD}"]
    return place.read(url, **impatient(place))


@case("HTTP 500 that does not pass")
def _(place: Place, capsys: pytest.CaptureFixture[str]) -> str:
    url, changes = place.served(), impatient(place)
    place.web.faults = {f"/{SHARD}": [None, *[500] * 1000]}  # there when the run began
    return place.read(url, **changes)


@case("a server that sends nothing")
def _(place: Place, capsys: pytest.CaptureFixture[str]) -> str:
    url, changes = place.served(), impatient(place)
    place.patch.setattr(shard_source, "Patience", partial(Patience, timeout_s=0.1))
    place.web.faults = {f"/{SHARD}": [None, *[0.5] * 1000]}
    return place.read(url, **changes)


@case("a server that trickles")
def _(place: Place, capsys: pytest.CaptureFixture[str]) -> str:
    url, changes = place.served(), impatient(place)
    place.web.faults = {f"/{SHARD}": [None, *[0.02] * 1000]}
    return place.read(url, **changes)


@case("another shard behind the URL")
def _(place: Place, capsys: pytest.CaptureFixture[str]) -> str:
    url, changes = place.served(), impatient(place)
    place.web.files[f"/{SHARD}"] = place.web.files["/train-000000.tar"]
    return place.read(url, **changes)


@case("an address that runs a command")
def _(place: Place, capsys: pytest.CaptureFixture[str]) -> str:
    return place.read("pipe:cat shards/index.json")


@case("an input that is cut off")
def _(place: Place, capsys: pytest.CaptureFixture[str]) -> str:
    (place.root / "in.jsonl.gz").write_bytes(gzip.compress(json_lines(texts(50)))[:-20])
    return place.prepare(capsys, f"inputs={place.root}/in.jsonl.gz", f"out={place.root}/out")


@case("an input that is not UTF-8")
def _(place: Place, capsys: pytest.CaptureFixture[str]) -> str:
    (place.root / "in.txt").write_bytes(b"caf\xe9")
    return place.prepare(capsys, f"inputs={place.root}/in.txt", f"out={place.root}/out")


@case("an input without the field")
def _(place: Place, capsys: pytest.CaptureFixture[str]) -> str:
    (place.root / "in.jsonl").write_bytes(json_lines(texts(3), field="body"))
    return place.prepare(capsys, f"inputs={place.root}/in.jsonl", f"out={place.root}/out")


@case("an input behind HTTP 404")
def _(place: Place, capsys: pytest.CaptureFixture[str]) -> str:
    return place.prepare(capsys, f"inputs={place.web.url}/in.jsonl", f"out={place.root}/out")
