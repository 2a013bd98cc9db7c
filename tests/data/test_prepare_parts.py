"""The parts of a preparation: the order on disk, the tokenizers, the bar."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from scaling import prepare
from scaling.commands.progress import ProgressBar
from scaling.config.run_config import DataConfig, TokenizerConfig
from scaling.data.prepare import build as prepare_module
from scaling.data.prepare import ordering
from scaling.data.prepare.encode import cut
from scaling.data.prepare.ordering import (
    bucket_bounds,
    document_of,
    merge_runs,
    read_documents,
    write_bucket,
    write_runs,
)
from scaling.data.prepare.sources import find_source
from scaling.data.prepare.tasks import synced
from scaling.data.shards import CorpusIndex
from scaling.data.tokenizer.existing import hub_tokenizer
from scaling.data.tokenizer.training import train_tokenizer
from scaling.errors import ConfigError
from tests.support.prepare_inputs import documents_of, texts


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.text(min_size=1, max_size=8), st.booleans())),
    st.integers(1, 5),
    st.integers(1, 2000),
    st.integers(1, 4),
)
def test_buckets_are_the_sorted_distinct_documents(
    tmp_path_factory, pairs, n_buckets, run_bytes, fan_in
):
    directory = tmp_path_factory.mktemp("order")
    documents = [document_of(text, held_out) for text, held_out in pairs if text.isprintable()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ordering, "RUN_BYTES", run_bytes)
        runs = write_runs(documents, directory, "run")
    low = 1 << 62
    runs = [
        merge_runs(directory, runs[i : i + fan_in], f"m{i}") for i in range(0, len(runs), fan_in)
    ]
    buckets = [
        write_bucket(directory, runs, f"b{i}", bucket_bounds(i, n_buckets), low)
        for i in range(n_buckets)
    ]
    held_out = {document.digest for document in documents if document.held_out}
    for side in (True, False):
        expected = sorted(
            {d.digest: d.content for d in documents if (d.digest in held_out) == side}.items()
        )
        found = []
        for bucket in buckets:
            all_of_it = list(read_documents(directory, bucket.name))
            found += (
                all_of_it[: bucket.n_held_out]
                if side
                else list(read_documents(directory, bucket.name, bucket.n_held_out))
            )
        assert found == [content for _, content in expected]
    distinct = {document.digest: document.content for document in documents}
    assert sum(bucket.n_documents for bucket in buckets) == len(distinct)
    assert sum(bucket.n_bytes for bucket in buckets) == sum(map(len, distinct.values()))
    assert sum(bucket.n_low for bucket in buckets) == sum(digest[0] < 64 for digest in distinct)


def test_memory_does_not_grow_with_the_corpus(tmp_path, monkeypatch):
    """Eight times as much text, all in one run and one bucket each time or in many: less than twice
    the peak."""
    monkeypatch.setattr(ordering, "RUN_BYTES", 1 << 20)
    peaks = []
    for n in (1_000, 8_000):
        tracemalloc.start()
        runs = write_runs(
            (document_of(f"{i} " * 200, False) for i in range(n)), tmp_path, f"run{n}"
        )
        for number in range(len(runs)):
            write_bucket(tmp_path, runs, "bucket", bucket_bounds(number, len(runs)), 0)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2 * peaks[0] < 8 << 20


@pytest.fixture(scope="module")
def tokenizers():
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abé1_.'s🙂"), rng.integers(1, 8))) for _ in range(500)]
    corpus = [" ".join(rng.choice(words, 50)) + "\n\t" for _ in range(50)]
    sizes = {"bpe": 400, "wordpiece": 560, "unigram": 300}
    return {
        kind: train_tokenizer(TokenizerConfig(kind=kind, vocab_size=size), corpus)
        for kind, size in sizes.items()
    }


@settings(max_examples=60)
@given(st.text(st.sampled_from("ab é1_\n\t.'s🙂"), max_size=60), st.integers(0, 10))
def test_the_tokens_of_a_cut_text_are_those_of_the_whole(tokenizers, text, length):
    parts = list(cut(text, length))
    assert "".join(parts) == text
    for tokenizer in tokenizers.values():
        joined = [token for ids in tokenizer.encode_batch(parts) for token in ids]
        assert joined == tokenizer.encode_batch([text])[0].tolist()


def test_a_long_document_is_cut_and_stays_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("scaling.data.prepare.encode.BATCH_BYTES", 100)
    document = " ".join(texts(100))
    (tmp_path / "a.txt").write_text(document)
    (tmp_path / "b.txt").write_text("short")
    words = ["tokenizer=bpe", "vocab_size=260", "processes=1"]
    assert prepare.main([f"inputs={tmp_path}/*.txt", f"out={tmp_path / 'out'}", *words]) == 0
    found = documents_of(tmp_path / "out", "train") + documents_of(tmp_path / "out", "val")
    assert sorted(found) == sorted([document, "short"])


def test_bytes_are_told_from_pieces(tokenizers):
    byte = train_tokenizer(TokenizerConfig(kind="byte", vocab_size=261, special_tokens="all"), [])
    assert byte.is_bytes
    assert byte.encode_batch(["aé"])[0].tolist() == list("aé".encode())
    assert [tokenizer.is_bytes for tokenizer in tokenizers.values()] == [False] * 3
    assert [tokenizer.kind for tokenizer in tokenizers.values()] == list(tokenizers)


def test_a_tokenizer_that_exists(tmp_path, tokenizers, capsys):
    raw = json.loads(tokenizers["bpe"].to_bytes())
    raw["added_tokens"] = []  # as one of another maker, with another end of text
    raw["model"]["vocab"]["</s>"] = raw["model"]["vocab"].pop("<|endoftext|>")
    raw["truncation"] = {
        "direction": "Right",
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    for i, text in enumerate(texts(20)):
        (tmp_path / f"{i}.txt").write_text(text)
    words = [f"inputs={tmp_path}/*.txt", f"out={tmp_path / 'out'}", "processes=1"]
    assert prepare.main([*words, f"tokenizer=hf:{tmp_path}"]) == 0
    info = CorpusIndex.load(tmp_path / "out").tokenizer
    assert (info.kind, info.vocab_size, info.eot_id) == ("bpe", 401, 400)
    assert sorted(
        documents_of(tmp_path / "out", "train") + documents_of(tmp_path / "out", "val")
    ) == sorted(texts(20))
    assert "tokenizer=bpe tokenizer.vocab_size=401" in capsys.readouterr().out


def test_tokenizers_that_cannot_be_had(tmp_path, monkeypatch):
    byte = TokenizerConfig(kind="byte", vocab_size=257)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="is not a tokenizer"):
        hub_tokenizer(str(tmp_path), byte)
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")).save(
        str(tmp_path / "tokenizer.json")
    )
    with pytest.raises(ConfigError, match="are not of bytes"):
        hub_tokenizer(str(tmp_path), byte)
    import huggingface_hub

    def unreachable(*_: object, **__: object) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    with pytest.raises(
        ConfigError, match=r"no file nobody/nothing, and the hub gives .* no route to host"
    ):
        hub_tokenizer("nobody/nothing", byte)


def test_installed_packages_are_found_with_their_tests(tmp_path, monkeypatch):
    site = tmp_path / "site-packages"
    for name in ("one/a.py", "one/tests/b.py", "one/__pycache__/c.py", "two.py", "one/data.txt"):
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(name)
    monkeypatch.setattr("scaling.data.prepare.sources.sysconfig.get_path", lambda name: str(site))
    files = find_source(DataConfig(kind="python_packages", cache_dir=str(tmp_path))).files
    assert [str(path.relative_to(site)) for path in files] == [
        "two.py",
        "one/a.py",
        "one/tests/b.py",
    ]


def test_the_real_packages_are_many():
    files = find_source(DataConfig(kind="python_packages", cache_dir="unused")).files
    assert any(path.parts[-2:] == ("torch", "__init__.py") for path in files)


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_on_a_terminal_and_in_a_file(terminal):
    out = io.StringIO()
    with ProgressBar(Console(file=out, force_terminal=terminal, width=80, highlight=False)) as bar:
        bar.report("documents [bold]", None)
        for part in np.linspace(0.01, 1, 100):
            bar.report("tokenising", float(part))
    text = out.getvalue()
    assert "documents [bold]" in text
    assert "100%" in text
    assert ("━" in text) == terminal
    if not terminal:
        assert text.count("\n") == 3  # the first, the last, and none in between so soon


def test_the_command_costs_no_torch():
    code = (
        "import sys, scaling.prepare, scaling.data.prepare.resume, scaling.data.prepare.inputs\n"
        "assert not {'torch', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_the_tokenizer_learns_from_a_sample_of_bounded_size(tmp_path, monkeypatch):
    for i, text in enumerate(texts(60)):
        (tmp_path / f"{i}.txt").write_text(text)
    seen: list[str] = []
    train = prepare_module.train_tokenizer
    monkeypatch.setattr(
        prepare_module,
        "train_tokenizer",
        lambda config, sample: train(config, [seen.append(t) or t for t in sample]),
    )
    words = ["tokenizer=byte", "processes=1", "tokenizer_sample=2000"]
    assert prepare.main([f"inputs={tmp_path}/*.txt", f"out={tmp_path / 'out'}", *words]) == 0
    train_texts = documents_of(tmp_path / "out", "train")
    assert seen == train_texts[: len(seen)]
    assert (
        2000
        <= sum(len(text.encode()) for text in seen)
        < 2000 + max(len(text.encode()) for text in train_texts)
    )


def test_a_shard_ends_with_the_document_that_fills_it(tmp_path, monkeypatch):
    monkeypatch.setattr("scaling.data.prepare.build.RUN_BYTES", 2000)  # shards that span buckets
    for i, text in enumerate(texts(60)):
        (tmp_path / f"{i}.txt").write_text(text)
    words = ["tokenizer=byte", "processes=1", "shard_tokens=1000"]
    assert prepare.main([f"inputs={tmp_path}/*.txt", f"out={tmp_path / 'out'}", *words]) == 0
    shards = CorpusIndex.load(tmp_path / "out").split("train")
    lengths = iter([len(text.encode()) + 1 for text in documents_of(tmp_path / "out", "train")])
    for shard in shards:
        documents = [next(lengths) for _ in range(shard.n_documents)]
        assert sum(documents) == shard.n_tokens
        assert sum(documents[:-1]) < 1000
        assert shard.n_tokens >= 1000 or shard is shards[-1]


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    def fill() -> None:
        with synced(tmp_path / "file") as file:
            file.write(b"half")
            file.flush()
            assert not (tmp_path / "file").exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill()
    assert list(tmp_path.iterdir()) == []
