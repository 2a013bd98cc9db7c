"""Inputs that are not on this machine: URLs, and data sets of the hub, of which a local server
plays the part."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from scaling import prepare
from scaling.data.io import http, hub, remote
from scaling.data.io.http import Patience
from scaling.data.io.hub import HubName
from scaling.data.prepare import inputs
from tests.support.prepare_inputs import contents, documents_of, json_lines, tar_of, texts
from tests.support.web_server import Web, serving

BYTE = ("tokenizer=byte", "shard_tokens=5000", "processes=1")


@pytest.fixture
def web(monkeypatch):
    monkeypatch.setattr(http, "_FIRST_DELAY_S", 0.01)
    with serving(monkeypatch) as web:
        monkeypatch.setenv("HF_ENDPOINT", web.url)
        monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
        yield web


def run(*words: str) -> int:
    return prepare.main(list(words))


def kept(out: Path) -> list[str]:
    return sorted(documents_of(out, "train") + documents_of(out, "val"))


def parquet_of(documents: list[str], path: Path, rows: int = 7) -> bytes:
    parquet.write_table(
        pyarrow.table({"id": list(range(len(documents))), "text": documents}),
        path,
        row_group_size=rows,
    )
    return path.read_bytes()


def zstd_of(content: bytes) -> bytes:
    return pyarrow.compress(content, codec="zstd", asbytes=True)


@pytest.mark.parametrize("processes", [1, 2])
def test_urls_of_every_format_give_the_bytes_that_files_give(
    web: Web, tmp_path, monkeypatch, processes
):
    documents = texts(120)
    parts = [documents[i::6] for i in range(6)]
    web.files = {
        "/a.jsonl": json_lines(parts[0]),
        "/b-000.json.gz": gzip.compress(json_lines(parts[1])),
        "/b-001.json.gz": gzip.compress(json_lines(parts[2])),
        "/c d.parquet": parquet_of(parts[3], tmp_path / "c.parquet"),
        "/e.jsonl.zst": zstd_of(json_lines(parts[4][:9])) + zstd_of(json_lines(parts[4][9:])),
        "/f.tar": tar_of({f"{i}.txt": text.encode() for i, text in enumerate(parts[5][:-1])}),
        "/g.txt": parts[5][-1].encode(),
    }
    monkeypatch.setattr(inputs, "PIECE_BYTES", 2000)
    local = tmp_path / "in"
    local.mkdir()
    for name, content in web.files.items():
        (local / name[1:]).write_bytes(content)
    assert run(f"inputs={local}/*", f"out={tmp_path / 'local'}", *BYTE) == 0
    for number, name in enumerate(("/a.jsonl", "/c d.parquet", "/f.tar")):
        web.faults[name] = [503, "cut"] * (number + 1)
    names = (
        "a.jsonl",
        "b-{000..001}.json.gz",
        "c%20d.parquet?download=1",
        "e.jsonl.zst",
        "f.tar",
        "g.txt",
    )
    words = (*BYTE[:2], f"processes={processes}")
    assert (
        run(
            "inputs=" + ",".join(f"{web.url}/{name}" for name in names),
            f"out={tmp_path / 'remote'}",
            *words,
        )
        == 0
    )
    assert kept(tmp_path / "remote") == sorted(documents)
    assert contents(tmp_path / "remote") == contents(tmp_path / "local")


def test_lines_of_a_server_without_ranges_are_one_piece(web: Web, tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "PIECE_BYTES", 500)
    web.files["/a.jsonl"] = json_lines(texts(60))
    assert len(inputs.find_pieces([f"{web.url}/a.jsonl"])) > 10
    web.ranges = False
    (piece,) = inputs.find_pieces([f"{web.url}/a.jsonl"])
    assert piece.end is None
    assert run(f"inputs={web.url}/a.jsonl", f"out={tmp_path / 'out'}", *BYTE) == 0
    assert kept(tmp_path / "out") == sorted(texts(60))


def test_parquet_wants_ranges(web: Web, tmp_path, capsys):
    web.files["/a.parquet"], web.ranges = parquet_of(texts(20), tmp_path / "a.parquet"), False
    assert run(f"inputs={web.url}/a.parquet", f"out={tmp_path / 'out'}", *BYTE) == 1
    assert "its server gives no ranges of it. Download the file first." in " ".join(
        capsys.readouterr().err.split()
    )


@pytest.mark.parametrize(
    ("faults", "code", "message"),
    [
        ([404], 1, "cannot be read: HTTP 404 Not Found"),
        ([403], 1, "cannot be read: HTTP 403 Forbidden"),
        ([500] * 100, 1, "cannot be read: HTTP 500 Internal Server Error (the last of"),
    ],
)
def test_a_url_that_is_not_there_is_told_at_once(
    web: Web, tmp_path, capsys, monkeypatch, faults, code, message
):
    monkeypatch.setattr(remote, "AT_FIRST", Patience(give_up_s=0.2))
    web.files["/a.jsonl"], web.faults["/a.jsonl"] = json_lines(texts(9)), faults
    assert run(f"inputs={web.url}/a.jsonl?token=s3cret", f"out={tmp_path / 'out'}", *BYTE) == code
    error = " ".join(capsys.readouterr().err.split())
    assert message in error
    assert "s3cret" not in error


def test_an_input_that_changed_between_two_calls_is_refused(web: Web, tmp_path, capsys):
    web.files["/a.jsonl"] = json_lines(texts(30))
    words = (f"inputs={web.url}/a.jsonl", f"out={tmp_path / 'out'}", *BYTE)
    assert run(*words) == 0
    assert run(*words) == 0
    web.files["/a.jsonl"] = json_lines(texts(31))
    assert run(*words) == 2
    assert "inputs that have changed" in " ".join(capsys.readouterr().err.split())


def publish(web: Web, name: str, files: dict[str, bytes], commit: str, configs: Any = None) -> None:
    """A data set on the hub: its card, its tree and its files, at one commit that is also the
    newest."""
    card = {"configs": configs} if configs else {}
    info = {
        "id": name,
        "sha": commit,
        "cardData": card,
        "siblings": [],
        "tags": [],
        "private": False,
        "downloads": 0,
        "likes": 0,
    }
    for place in (
        f"/api/datasets/{name}",
        f"/api/datasets/{name}/revision/{commit}",
        f"/api/datasets/{name}/revision/main",
    ):
        web.answers[place] = info
    entries = [
        {"type": "file", "path": path, "size": len(content), "oid": f"{i:040x}"}
        for i, (path, content) in enumerate(files.items())
    ]
    folders = {
        "",
        *(str(parent) for path in files for parent in Path(path).parents if str(parent) != "."),
    }
    for folder in folders:
        inside = [
            entry for entry in entries if entry["path"].startswith(f"{folder}/" if folder else "")
        ]
        web.answers[f"/api/datasets/{name}/tree/{commit}" + (f"/{folder}" if folder else "")] = (
            inside
        )
    web.files |= {
        f"/datasets/{name}/resolve/{commit}/{path}": content for path, content in files.items()
    }


EN = [
    {"split": "train", "path": "en/train.*.json.gz"},
    {"split": "validation", "path": "en/validation.*"},
]
CARD = [
    {"config_name": "en", "data_files": EN},
    {"config_name": "de", "data_files": [{"split": "train", "path": ["de/*"]}]},
]


def publish_c4(web: Web, commit: str = "1" * 40) -> dict[str, list[str]]:
    documents = texts(90)
    parts = {
        "en/train.00000.json.gz": documents[:30],
        "en/train.00001.json.gz": documents[30:60],
        "en/validation.00000.json.gz": documents[60:70],
        "de/all.json.gz": documents[70:],
    }
    publish(
        web,
        "someone/c4",
        {name: gzip.compress(json_lines(part)) for name, part in parts.items()}
        | {"README.md": b"c4"},
        commit,
        CARD,
    )
    return parts


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("hf:someone/c4:en", ["en/train.00000.json.gz", "en/train.00001.json.gz"]),
        ("hf:someone/c4:de", ["de/all.json.gz"]),
        ("hf:someone/c4@main:de", ["de/all.json.gz"]),
        (
            "hf:someone/c4/en/*",
            ["en/train.00000.json.gz", "en/train.00001.json.gz", "en/validation.00000.json.gz"],
        ),
        (
            f"hf:someone/c4@{'1' * 40}/*/*00000*",
            ["en/train.00000.json.gz", "en/validation.00000.json.gz"],
        ),
        ("hf://datasets/someone/c4/de/*", ["de/all.json.gz"]),
    ],
)
def test_a_name_of_the_hub_stands_for_the_training_files_of_a_subset(
    web: Web, tmp_path, name, chosen
):
    parts = publish_c4(web)
    assert run(f"inputs={name}", f"out={tmp_path / 'out'}", *BYTE) == 0
    assert kept(tmp_path / "out") == sorted(text for file in chosen for text in parts[file])


def test_the_token_goes_to_the_hub_alone_and_is_written_nowhere(
    web: Web, tmp_path, capsys, monkeypatch
):
    publish_c4(web)
    web.files["/elsewhere.jsonl"] = json_lines(texts(5, start=500))
    elsewhere = web.url.replace("127.0.0.1", "localhost") + "/elsewhere.jsonl"
    monkeypatch.setenv("no_proxy", "localhost,127.0.0.1")
    assert run(f"inputs=hf:someone/c4:de,{elsewhere}", f"out={tmp_path / 'out'}", *BYTE) == 0
    sent = [
        (path, headers.get("Authorization"))
        for (_, path, _), headers in zip(web.asked, web.headers, strict=True)
    ]
    assert {token for path, token in sent if "/resolve/" in path} == {"Bearer hf_of_a_test"}
    assert {token for path, token in sent if path == "/elsewhere.jsonl"} == {None}
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").iterdir())
    assert b"hf_of_a_test" not in written + "".join(capsys.readouterr()).encode()


def test_max_files_takes_the_first(web: Web, tmp_path):
    parts = publish_c4(web)
    assert run("inputs=hf:someone/c4:en", "max_files=1", f"out={tmp_path / 'out'}", *BYTE) == 0
    assert kept(tmp_path / "out") == sorted(parts["en/train.00000.json.gz"])


def test_a_killed_preparation_goes_on_with_the_commit_that_it_began_with(
    web: Web, tmp_path, monkeypatch
):
    parts = publish_c4(web)
    words = ("inputs=hf:someone/c4:de", f"out={tmp_path / 'out'}", *BYTE)
    with monkeypatch.context() as patch:
        patch.setattr(
            "scaling.data.prepare.build.encode_bucket",
            lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")),
        )
        assert run(*words) == 1
    web.answers = {
        path: answer for path, answer in web.answers.items() if not path.endswith(("/c4", "/main"))
    }
    assert run(*words) == 0
    assert kept(tmp_path / "out") == sorted(parts["de/all.json.gz"])


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        (
            {
                "data/train-0.parquet": 0,
                "data/test-0.parquet": 1,
                "README.md": 2,
                ".gitattributes": 2,
            },
            [0],
        ),
        ({"x/part-0.jsonl": 0, "x/part-1.jsonl": 1, "x/test.jsonl": 2, "license.txt": 3}, [0, 1]),
        ({"corpus.jsonl": 0}, [0]),
    ],
)
def test_without_a_card_the_names_of_files_tell_the_splits(web: Web, tmp_path, files, chosen):
    documents = [texts(5, start=10 * i) for i in range(4)]

    def content(name: str, number: int) -> bytes:
        return (
            parquet_of(documents[number], tmp_path / "p")
            if name.endswith("parquet")
            else json_lines(documents[number])
        )

    publish(web, "bare", {name: content(name, number) for name, number in files.items()}, "2" * 40)
    assert run("inputs=hf:bare", f"out={tmp_path / 'out'}", *BYTE) == 0
    assert kept(tmp_path / "out") == sorted(text for number in chosen for text in documents[number])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "hf:someone/c4",
            "has several subsets (from hf:someone/c4). Name one, as hf:someone/c4:en. "
            "There are: en, de.",
        ),
        ("hf:someone/c4:fr", "has no subset 'fr'"),
        (
            "hf:nobody/nothing",
            "the hub gives no data set nobody/nothing: HfHubHTTPError: Client error '404 Not "
            "Found'",
        ),
        ("hf:someone/c4/xx/*", "no file matches xx/*"),
        ("hf:some one", "'hf:some one' names no data set of the hub"),
    ],
)
def test_names_that_stand_for_nothing(web: Web, tmp_path, capsys, name, message):
    publish_c4(web)
    web.answers[f"/api/datasets/someone/c4/tree/{'1' * 40}/xx"] = []
    assert run(f"inputs={name}", f"out={tmp_path / 'out'}", *BYTE) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_data_set_of_pictures_is_refused_with_what_is_read(web: Web, tmp_path, capsys):
    publish(web, "pictures", {"a.png": b"x", "b.png": b"y"}, "3" * 40)
    assert run("inputs=hf:pictures", f"out={tmp_path / 'out'}", *BYTE) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "2 files match **, and none is of a kind that is read" in error
    assert "hf:pictures@~parquet" in error


def test_the_hub_cannot_be_reached(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert run("inputs=hf:someone/c4:en", f"out={tmp_path / 'out'}", *BYTE) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "the hub gives no data set someone/c4: ConnectError" in error
    assert "Check the name, the network" in error


def test_names_are_taken_apart():
    name = HubName.parse("hf:a/b@~parquet:sub/x/*.parquet")
    assert (name.name, name.revision, name.subset, name.pattern) == (
        "a/b",
        "refs/convert/parquet",
        "sub",
        "x/*.parquet",
    )
    assert HubName.parse("hf:gpt2").name == "gpt2"
    assert HubName.parse("books/*.txt") is None
    assert json.dumps(list(hub._training_patterns("x/*"))) == '["x/*"]'
