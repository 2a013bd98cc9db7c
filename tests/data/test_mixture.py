"""Mixtures: pure arithmetic that takes from each corpus in its own order, and corpora of one
tokenizer behind it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.composition.compose import compose
from scaling.config.run_config import DataConfig
from scaling.data.corpus import Corpus, MixtureStream
from scaling.data.mixture import PERIOD, Component, Mixture, fingerprint, write_mixture
from scaling.data.prepare.cached import ensure_corpus
from scaling.data.read.stream import SequenceStream
from scaling.data.shards import CorpusIndex
from scaling.errors import ConfigError, DataError
from tests.support.corpora import (
    BPE,
    BYTE,
    random_documents,
    text_config,
    write_corpus,
    write_texts,
)

weights_lists = st.lists(st.floats(0.001, 100), min_size=1, max_size=6)


@settings(max_examples=30)
@given(weights_lists, st.integers(0, 2**60), st.integers(0, 10**9), st.integers(1, 500))
def test_each_component_is_taken_from_in_its_own_order(weights, seed, start, length):
    mixture = Mixture(weights, seed)
    components, numbers = mixture.locate(np.arange(start, start + length))
    before = mixture.counts(start)
    for component in range(len(weights)):
        own = numbers[components == component]
        np.testing.assert_array_equal(
            own, np.arange(before[component], before[component] + len(own))
        )
    assert (mixture.counts(start + length) - before).sum() == length


@settings(max_examples=30)
@given(weights_lists, st.integers(0, 100), st.integers(1, 10**12))
def test_every_beginning_has_about_the_parts_that_were_asked_for(weights, seed, k):
    exact = np.array(weights) / sum(weights)
    mixture = Mixture(weights, seed)
    np.testing.assert_allclose(mixture.shares_C, exact, atol=1 / PERIOD)
    # 4.6 was the most in 40 whole periods
    assert np.abs(mixture.counts(k) - k * mixture.shares_C).max() < 8


def test_decimal_parts_are_exact_and_thirds_nearly():
    assert Mixture([0.7, 0.25, 0.05], 0).shares_C.tolist() == [0.7, 0.25, 0.05]
    assert Mixture([1, 1, 1], 0).counts(PERIOD).tolist() == [277347, 277347, 277346]


def test_golden_places():
    """A changed value changes the data order of every run on a mixture."""
    components, numbers = Mixture([0.5, 0.3, 0.2], 1234).locate(
        np.array([0, 1, 2, 3, 4, 5, 6, 7, 10**9])
    )
    assert list(zip(components.tolist(), numbers.tolist(), strict=True)) == GOLDEN


GOLDEN = [(1, 0), (0, 0), (1, 1), (0, 1), (0, 2), (1, 2), (0, 3), (2, 0), (0, 499999999)]


def test_the_seed_moves_the_order():
    ks = np.arange(1000)
    assert not np.array_equal(Mixture([1, 2], 0).locate(ks)[0], Mixture([1, 2], 1).locate(ks)[0])


@given(st.lists(st.tuples(st.floats(0.01, 1), st.integers(0, 200)), min_size=1, max_size=4))
@settings(max_examples=20)
def test_sequences_within_is_the_longest_beginning_that_repeats_nothing(parts):
    mixture, available = Mixture([weight for weight, _ in parts], 0), [n for _, n in parts]
    n = mixture.sequences_within(available)
    assert (mixture.counts(n) <= available).all()
    assert (mixture.counts(n + 1) > available).any()


def test_a_weight_of_nothing_is_refused():
    with pytest.raises(
        ConfigError, match=r"a weight of 1e-09 beside a sum of 1 is none in 832040 sequences"
    ):
        Mixture([1.0, 1e-9], 0)


def two_corpora(directory: Path) -> list[tuple[Path, CorpusIndex]]:
    corpora = []
    for seed in (0, 1):
        (directory / str(seed)).mkdir()
        corpora.append(
            (
                directory / str(seed),
                write_corpus(directory / str(seed), random_documents(seed, n_shards=4)),
            )
        )
    return corpora


def test_what_a_mixture_reads_is_what_its_corpora_hold(tmp_path):
    corpora = two_corpora(tmp_path)
    streams = [
        SequenceStream(directory, index, "train", 16, seed=7) for directory, index in corpora
    ]
    mixture = Mixture([3, 1], 7)
    ks = np.arange(50, 150)
    with MixtureStream(streams, mixture) as stream:
        rows = stream.read(ks)
    for component, (directory, index) in enumerate(corpora):
        chosen = mixture.locate(ks)[0] == component
        with SequenceStream(directory, index, "train", 16, seed=7) as alone:
            np.testing.assert_array_equal(rows[chosen], alone.read(mixture.locate(ks)[1][chosen]))


def test_the_fingerprint_is_of_contents_and_weights():
    a, b = Component("a", "/x", "1" * 64, 0.5), Component("b", "/y", "2" * 64, 0.5)
    whole = fingerprint([a, b])
    assert (
        fingerprint([Component("c", "/z", "1" * 64, 2), Component("d", "/w", "2" * 64, 2)]) == whole
    )
    others = [
        [b, a],
        [a, Component("b", "/y", "2" * 64, 0.4)],
        [a, Component("b", "/y", "3" * 64, 0.5)],
    ]
    assert len({whole, *map(fingerprint, others)}) == 4


def mixed(tmp_path: Path, *components: dict[str, object], **changes: object) -> DataConfig:
    values = {
        "kind": "mixture",
        "components": components,
        "cache_dir": str(tmp_path / "cache"),
        "val_fraction": 0.2,
    }
    return DataConfig.model_validate(values | {"shard_tokens": 2000} | changes)


def text_parts(tmp_path: Path) -> list[dict[str, object]]:
    parts = []
    for number, name in enumerate(("one", "two")):
        write_texts(tmp_path / name, n_files=30 + number)
        if number:
            (tmp_path / name / "more.txt").write_text("other words " * 200)
            for path in list((tmp_path / name).glob("0*.txt"))[:20]:
                path.write_text(path.read_text() + "more of it")
        parts.append(
            {
                "name": name,
                "weight": 3 - number,
                "kind": "text_files",
                "path": str(tmp_path / name / "*.txt"),
            }
        )
    return parts


@pytest.mark.parametrize("tokenizer", [BPE, BYTE], ids=["bpe", "byte"])
def test_components_are_prepared_with_the_tokenizer_of_the_first(tmp_path, tokenizer):
    data = mixed(tmp_path, *text_parts(tmp_path))
    corpus = Corpus.open(ensure_corpus(data, tokenizer))
    assert [part.component.name for part in corpus.parts] == ["one", "two"]
    assert len({part.index.tokenizer.sha256 for part in corpus.parts}) == 1
    assert {part.index.tokenizer.kind for part in corpus.parts} == {tokenizer.kind}
    alone = CorpusIndex.load(
        ensure_corpus(text_config(str(tmp_path / "one" / "*.txt"), tmp_path / "cache"), tokenizer)
    )
    assert corpus.parts[0].index == alone
    assert corpus.fingerprint == Corpus.open(ensure_corpus(data, tokenizer)).fingerprint
    assert corpus.check("train", full=True) == corpus.check("val", full=True) == []


def test_a_run_reads_train_and_held_out_parts_and_tells_its_shares(tmp_path):
    first, second = text_parts(tmp_path)
    components = (
        "["
        + ", ".join(
            "{"
            + ", ".join(
                f"{k}: '{v}'" if isinstance(v, str) else f"{k}: {v}" for k, v in part.items()
            )
            + "}"
            for part in (first, second)
        )
        + "]"
    )
    config = compose(
        [
            "data=mixture",
            f"data.components={components}",
            f"data.cache_dir={tmp_path / 'cache'}",
            "data.val_fraction=0.2",
            "tokenizer=byte",
            "train.seq_len=32",
        ]
    )
    corpus = Corpus.open(ensure_corpus(config.data, config.tokenizer))
    with corpus.stream(config, "train") as train, corpus.stream(config, "val") as val:
        assert train.read(np.arange(100)).shape == (100, 33)
        assert val.read(np.arange(val.n_sequences)).shape == (val.n_sequences, 33)
    values = corpus.mixing(config)(1000)
    assert values["data/share/one"] == pytest.approx(0.6, abs=0.003)
    assert values["data/share/one"] + values["data/share/two"] == 1
    n_one = corpus.parts[0].index.n_sequences("train", 32, 1)
    assert values["data/epochs/one"] == pytest.approx(1000 * values["data/share/one"] / n_one)


def test_prepared_shards_may_be_mixed_when_their_tokenizers_are_one(tmp_path):
    (one, _), (two, _) = two_corpora(tmp_path)
    parts = [
        {"name": name, "weight": 1, "kind": "shards", "path": str(path)}
        for name, path in (("one", one), ("two", two))
    ]
    tokenizer = BPE.model_copy(update={"vocab_size": 1000})
    (one / "tokenizer.json").write_text("{}")
    corpus = Corpus.open(ensure_corpus(mixed(tmp_path, *parts), tokenizer))
    (two / "train-000001.tar").unlink()
    assert [bad.name for bad in corpus.check("train")] == ["two/train-000001.tar"]
    rest = Corpus.open(corpus.location, ["two/train-000001.tar"])
    assert [len(part.index.split("train")) for part in rest.parts] == [4, 3]
    assert rest.fingerprint != corpus.fingerprint
    with pytest.raises(ConfigError, match="one and again are the same corpus"):
        ensure_corpus(mixed(tmp_path, parts[0], parts[0] | {"name": "again"}), tokenizer)


def test_corpora_of_different_tokenizers_are_refused(tmp_path):
    first, second = text_parts(tmp_path)
    places = [
        ensure_corpus(text_config(part["path"], tmp_path / "cache"), BPE)
        for part in (first, second)
    ]
    parts = [
        {"name": name, "weight": 1, "kind": "shards", "path": str(path)}
        for name, path in zip("ab", places, strict=True)
    ]
    with pytest.raises(
        ConfigError, match="the corpora a and b were made with different tokenizers"
    ):
        ensure_corpus(mixed(tmp_path, *parts), BPE)


def test_a_component_that_changed_is_not_taken_for_the_one_that_was_mixed(tmp_path):
    corpora = two_corpora(tmp_path)
    components = [
        Component(str(i), str(path), index.fingerprint, 1.0)
        for i, (path, index) in enumerate(corpora)
    ]
    location = write_mixture(tmp_path, components)
    write_corpus(corpora[1][0], random_documents(5))
    with pytest.raises(DataError, match="holds another corpus than when the mixture was made"):
        Corpus.open(location)
    (location / "mixture.json").write_text("{}")
    with pytest.raises(DataError, match=r"mixture.json is not a mixture"):
        Corpus.open(location)


@pytest.mark.parametrize(
    ("components", "message"),
    [
        ((), "data=mixture needs data.components"),
        (({"name": "a", "weight": 0, "kind": "python_stdlib"},), "greater than 0"),
        (({"name": "a b", "weight": 1, "kind": "python_stdlib"},), "match pattern"),
        (({"name": "a", "weight": 1, "kind": "shards"},), "data=shards needs data.path"),
        (({"name": "a", "weight": 1, "kind": "python_stdlib"},) * 2, "two of one name"),
    ],
)
def test_components_that_cannot_be(tmp_path, components, message):
    with pytest.raises(ValueError, match=message):
        mixed(tmp_path, *components)
