"""Text pairs: from files to packed batches, without loss but for what has no room."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.batch import IGNORED, PADDING, Batch
from scaling.config.run_config import TokenizerConfig
from scaling.data.objective import make_batch_for
from scaling.data.prepare.cached import ensure_corpus
from scaling.data.read.stream import SequenceStream
from scaling.data.shards import CorpusIndex
from scaling.data.tokenizer.byte_level import load_tokenizer
from scaling.errors import ConfigError, DataError
from scaling.planner.cost.lengths import lengths
from tests.support.configs import composed
from tests.support.objectives import EOT, PAD, SEP, objective

TOKENIZER = TokenizerConfig(kind="byte", vocab_size=261, special_tokens="all")


def unpacked(batch: Batch, row: int) -> list[tuple[list[int], list[int]]]:
    """The pairs of a row, their ends checked and taken off."""
    pairs = []
    for number in sorted(set(batch.documents_BT[row].tolist()) - {PADDING}):
        source = batch.source_BU[row][batch.source_documents_BU[row] == number].tolist()
        place = batch.documents_BT[row] == number
        tokens, targets = (
            batch.tokens_BT[row][place].tolist(),
            batch.targets_BT[row][place].tolist(),
        )
        assert source[-1] == targets[-1] == EOT
        assert tokens == [PAD, *targets[:-1]]
        pairs.append((source[:-1], targets[:-1]))
    assert (batch.targets_BT[row] != IGNORED).tolist() == (
        batch.documents_BT[row] != PADDING
    ).tolist()
    return pairs


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(80, 200))
def test_windows_hold_every_pair_once(seed: int, seq_len: int) -> None:
    config, make_batch = objective("objective=seq2seq", f"train.seq_len={seq_len}")
    shape, rng = lengths(config), np.random.default_rng(seed)
    pairs = [
        tuple(rng.integers(0, 256, rng.integers(1, 9)).tolist() for _ in range(2))
        for _ in range(200)
    ]
    stream = np.array([t for source, target in pairs for t in (*source, SEP, *target, EOT)])
    n = (len(stream) - shape.overlap) // shape.stride
    rows = np.stack(
        [stream[i * shape.stride : (i + 1) * shape.stride + shape.overlap] for i in range(n)]
    )
    batch = make_batch(rows, np.arange(n))
    assert batch.source_BU.shape == (n, shape.inputs)
    assert batch.tokens_BT.shape == batch.targets_BT.shape == (n, shape.targets)
    found = [pair for row in range(n) for pair in unpacked(batch, row)]
    expected = [([*source], [*target]) for source, target in pairs]
    in_order = iter(expected)
    assert all(pair in in_order for pair in found)
    assert expected[0] not in found  # the first of a shard is not used
    # Unequal pairs at the end of a window may find no room.
    assert sum(len(a) + len(b) + 2 for a, b in found) > 0.93 * n * shape.stride - 20


def test_what_is_too_long_is_left_out_and_the_rest_stays() -> None:
    config, make_batch = objective("objective=seq2seq", "train.seq_len=40")
    room = lengths(config).inputs
    row = np.full(lengths(config).stride + lengths(config).overlap, 7)
    content = [EOT, 1, SEP, 2, EOT, *[3] * room, SEP, 4, EOT, 5, SEP, 6, EOT]
    row[: len(content)] = content
    assert unpacked(make_batch(row[None], np.arange(1)), 0)[:1] == [([1], [2])]
    short = [EOT, 1, SEP, 2, EOT, *[3] * (room - 2), SEP, 4, EOT, 5, SEP, 6, EOT]
    row[:] = 7
    row[: len(short)] = short
    assert unpacked(make_batch(row[None], np.arange(1)), 0) == [([1], [2]), ([5], [6])]


def pair_config(path: Path, cache: Path, **more: object):
    return composed(
        "model=transformer_base",
        "tokenizer=byte",
        "tokenizer.special_tokens=all",
        "tokenizer.vocab_size=261",
        "data=text_pairs",
        f"data.path={path}",
        f"data.cache_dir={cache}",
        "data.val_fraction=0.2",
        "train.seq_len=64",
        *(f"data.{key}={value}" for key, value in more.items()),
    )


def decoded(config, split: str) -> set[tuple[str, str]]:
    directory = ensure_corpus(config.data, config.tokenizer)
    index = CorpusIndex.load(directory)
    tokenizer, shape = load_tokenizer(directory, index), lengths(config)
    with SequenceStream(
        directory, index, split, seq_len=shape.stride, overlap=shape.overlap, seed=0, shuffle=False
    ) as stream:
        ks = np.arange(stream.n_sequences)
        batch = make_batch_for(config, tokenizer)(stream.read(ks), ks)
    return {
        (tokenizer.decode(a), tokenizer.decode(b))
        for row in range(len(ks))
        for a, b in unpacked(batch, row)
    }


def test_files_of_lines_and_parallel_files_give_pairs(tmp_path: Path) -> None:
    lines = [(f"zahl {n} ü", f"number {n}") for n in range(300)]
    with_tab = [("zahl\tmit TAB", "number")]  # of parallel files a TAB is text
    (tmp_path / "pairs.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in lines))
    (tmp_path / "a.de").write_text("".join(f"{a}\n" for a, _ in lines + with_tab) + "\n")
    (tmp_path / "b.en").write_text("".join(f"{b}\n" for _, b in lines + with_tab) + "\n")
    one = pair_config(tmp_path / "pairs.tsv", tmp_path / "cache")
    two = pair_config(tmp_path / "a.de", tmp_path / "cache", target_path=tmp_path / "b.en")
    train, val = decoded(one, "train"), decoded(one, "val")
    assert train <= set(lines)
    assert val <= set(lines)
    assert not train & val
    assert len(train | val) > 270  # the first pair of a shard, and its last, incomplete windows
    both = decoded(two, "train") | decoded(two, "val")
    assert both <= set(lines + with_tab)
    assert len(both) > 270


@pytest.mark.parametrize(
    ("content", "message"),
    [("a\tb\nno tab\n", "line 2 of .*pairs.tsv has 0 TABs"), ("a\tb\tc\n", "has 2 TABs")],
)
def test_lines_that_are_no_pairs_are_named(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv").write_text(content)
    config = pair_config(tmp_path / "pairs.tsv", tmp_path / "cache")
    with pytest.raises(DataError, match=message):
        ensure_corpus(config.data, config.tokenizer)


def test_parallel_files_of_unequal_length_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1\n2\n")
    (tmp_path / "b").write_text("1\n")
    config = pair_config(tmp_path / "a", tmp_path / "cache", target_path=tmp_path / "b")
    with pytest.raises(DataError, match=r"a has 2 lines, and .*b has 1"):
        ensure_corpus(config.data, config.tokenizer)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("model=bert_tiny", "objective=causal_lm"),
            "objective=causal_lm does not fit model.family=bert, which sees the tokens",
        ),
        (
            ("model=gpt_nano", "objective=masked_lm"),
            "objective=masked_lm does not fit model.family=gpt",
        ),
        (
            ("model=t5_tiny", "objective=causal_lm"),
            "has an encoder that needs an input of its own; use span_corruption",
        ),
        (
            ("model=transformer_base", "data=python_stdlib"),
            "objective=seq2seq needs data=text_pairs",
        ),
        (
            ("model=gpt_nano", "data=text_pairs", "data.path=x"),
            "objective=causal_lm has no use for data=text_pairs",
        ),
        (("model=bert_tiny", "tokenizer=bpe"), "set tokenizer.special_tokens=all"),
        (
            ("model=bert_tiny", "model.vocab_size=4000"),
            "model.vocab_size=4000 is smaller than tokenizer.vocab_size=4096",
        ),
        (
            ("model=t5_tiny", "tokenizer.n_sentinels=3"),
            "hides 7 spans a sequence, and tokenizer.n_sentinels=3",
        ),
        (("model.n_experts=2", "model.experts_per_token=3"), "only n_experts=2"),
        (
            ("schedule=inverse_sqrt", "schedule.warmup_tokens=0"),
            "schedule.warmup_tokens, so that cannot be 0",
        ),
    ],
)
def test_contradictions_are_refused_with_the_reason(
    overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        composed(*overrides)


def test_packed_positions_begin_anew() -> None:
    from scaling.model.encoder_decoder import places

    documents = torch.tensor([[0, 0, 0, 1, 1, PADDING, PADDING], [3, 4, 4, 4, 4, 4, 4]])
    assert places(documents).tolist() == [[0, 1, 2, 0, 1, 0, 1], [0, 0, 1, 2, 3, 4, 5]]
