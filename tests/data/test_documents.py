"""data=documents, and tokenizers that exist: what a run prepares for itself from anything that
scaling.prepare reads."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest

from scaling.commands import cli
from scaling.composition.compose import compose
from scaling.config.run_config import DataConfig, TokenizerConfig
from scaling.data.io import http
from scaling.data.io.fetch import AT_FIRST
from scaling.data.prepare import build as prepare
from scaling.data.prepare import cached as corpus_module
from scaling.data.prepare.cached import ensure_corpus
from scaling.data.shards import CorpusIndex
from scaling.data.tokenizer.training import train_tokenizer
from scaling.errors import ConfigError, DataError
from tests.data.test_prepare_remote import publish_c4
from tests.support.corpora import BYTE
from tests.support.prepare_inputs import contents, documents_of, json_lines, texts
from tests.support.web_server import Web, serving


@pytest.fixture
def web(monkeypatch):
    monkeypatch.setattr(http, "_FIRST_DELAY_S", 0.01)
    with serving(monkeypatch) as web:
        monkeypatch.setenv("HF_ENDPOINT", web.url)
        yield web


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    monkeypatch.setattr(corpus_module, "n_cores", lambda: 1)


def documents(tmp_path: Path, path: str, **changes: object) -> DataConfig:
    values = {
        "kind": "documents",
        "path": path,
        "cache_dir": str(tmp_path / "cache"),
        "shard_tokens": 5000,
    }
    return DataConfig.model_validate(values | changes)


def kept(directory: Path) -> list[str]:
    return sorted(documents_of(directory, "train") + documents_of(directory, "val"))


def test_files_of_this_machine(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(json_lines(texts(40), field="body")))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "b.py").write_text("b = 1\n")
    data = documents(tmp_path, f"{tmp_path}/a.jsonl.gz,{tmp_path}/folder", field="body")
    directory = ensure_corpus(data, BYTE)
    assert kept(directory) == sorted([*texts(40), "b = 1\n"])
    assert ensure_corpus(data, BYTE) == directory
    (tmp_path / "folder" / "b.py").write_text("b = 22\n")
    assert ensure_corpus(data, BYTE) != directory


def test_a_data_set_of_the_hub_needs_the_network_once(tmp_path, web: Web):
    parts = publish_c4(web)
    data = documents(tmp_path, "hf:someone/c4:en", max_files=1)
    directory = ensure_corpus(data, BYTE)
    assert kept(directory) == sorted(parts["en/train.00000.json.gz"])
    n_asked = len(web.asked)
    assert ensure_corpus(data, BYTE) == directory
    assert len(web.asked) == n_asked


@pytest.mark.parametrize(("name", "subset"), [("c4", "en"), ("fineweb_edu", "sample-10BT")])
def test_the_named_data_sets_are_those_of_the_hub(name, subset):
    data = compose([f"data={name}"]).data
    assert data.kind == "documents"
    assert data.path.startswith("hf:")
    assert data.path.endswith(f":{subset}")
    assert data.max_files


def test_what_was_done_before_a_kill_is_not_done_again(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_bytes(json_lines(texts(60)))
    data = documents(tmp_path, f"{tmp_path}/a.jsonl")
    whole = ensure_corpus(data.model_copy(update={"cache_dir": str(tmp_path / "other")}), BYTE)
    with monkeypatch.context() as patch:
        patch.setattr(
            prepare,
            "encode_bucket",
            lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")),
        )
        with pytest.raises(DataError, match="No space left on device"):
            ensure_corpus(data, BYTE)
    monkeypatch.setattr(prepare, "sort_piece", lambda *_: pytest.fail("read again"))
    assert contents(ensure_corpus(data, BYTE)) == contents(whole)


def test_a_document_that_is_none_is_told_with_its_place(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"txt": "b"}\n')
    with pytest.raises(
        DataError, match=r"line at byte 14 of .*a.jsonl has no text in 'text', but: txt"
    ):
        ensure_corpus(documents(tmp_path, f"{tmp_path}/a.jsonl"), BYTE)


def own_tokenizer(tmp_path: Path) -> Path:
    """A tokenizer.json as another maker writes it, of 301 entries with our end of text."""
    trained = json.loads(
        train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=300), texts(50)).to_bytes()
    )
    trained["added_tokens"] = []
    trained["model"]["vocab"]["</s>"] = trained["model"]["vocab"].pop("<|endoftext|>")
    (tmp_path / "tok").mkdir()
    (tmp_path / "tok" / "tokenizer.json").write_text(json.dumps(trained))
    return tmp_path / "tok"


def test_a_tokenizer_that_exists(tmp_path):
    folder = own_tokenizer(tmp_path)
    (tmp_path / "a.jsonl").write_bytes(json_lines(texts(40)))
    config = compose(
        [
            "data=documents",
            f"data.path={tmp_path}/a.jsonl",
            f"data.cache_dir={tmp_path / 'cache'}",
            f"tokenizer=hf:{folder}",
            "tokenizer.vocab_size=301",
        ]
    )
    assert (config.tokenizer.kind, config.tokenizer.name, config.vocab_size) == (
        "hf",
        str(folder),
        301,
    )
    directory = ensure_corpus(config.data, config.tokenizer)
    assert CorpusIndex.load(directory).tokenizer.vocab_size == 301
    assert kept(directory) == sorted(texts(40))
    as_shards = DataConfig(kind="shards", path=str(directory), cache_dir=str(tmp_path / "cache"))
    assert ensure_corpus(as_shards, config.tokenizer) == directory
    other = shutil.copytree(folder, tmp_path / "tok2")
    (other / "tokenizer.json").write_text(
        (folder / "tokenizer.json").read_text().replace("</s>", "<eos>")
    )
    renamed = config.tokenizer.model_copy(update={"name": str(other)})
    assert ensure_corpus(config.data, renamed) != directory


def test_the_size_of_a_tokenizer_that_exists_is_checked(tmp_path):
    folder = own_tokenizer(tmp_path)
    (tmp_path / "a.jsonl").write_bytes(json_lines(texts(40)))
    tokenizer = TokenizerConfig(kind="hf", name=str(folder), vocab_size=300)
    with pytest.raises(
        ConfigError,
        match=r"has 301 entries with its special tokens(.|\n)*Set tokenizer.vocab_size=301",
    ):
        ensure_corpus(documents(tmp_path, f"{tmp_path}/a.jsonl"), tokenizer)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tokenizer=hf:gpt2"], "tokenizer.vocab_size has no value"),
        (["tokenizer=hf", "tokenizer.vocab_size=300"], "tokenizer.name has no value"),
        (["tokenizer=bpe", "tokenizer.name=gpt2"], "tokenizer=bpe has no use for tokenizer.name"),
        (
            ["data=shards", "data.path=https://me:s3cret@host/dir"],
            "data.path holds a password or a key",
        ),
        (
            ["data=shards", "data.path='https://host/dir?X-Amz-Signature=abc'"],
            "data.path holds a password or a key",
        ),
        (
            ["data.components=[{name: a, weight: 1, kind: python_stdlib}]"],
            "only data=mixture reads",
        ),
        (
            ["model=t5_tiny", "data.attend_across_documents=false"],
            "is for objective=causal_lm and masked_lm",
        ),
    ],
)
def test_configurations_that_cannot_be(overrides, message):
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    assert message in str(caught.value)


def test_names_with_blanks_and_quotes_are_kept():
    config = compose(["tokenizer=hf:/a b/it's.json", "tokenizer.vocab_size=300"])
    assert config.tokenizer.name == "/a b/it's.json"


def test_the_command_knows_them_too(capsys):
    words = ["tokenizer=hf:abc/de", "tokenizer.vocab_size=300"]
    assert cli.run_task(lambda config: len(config.tokenizer.name), len, words) == 6


def test_first_contact_is_short():
    assert AT_FIRST.give_up_s <= 30
