"""What counting alone achieves on the targets of a run: the levels beside which its loss is to be
read."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from scaling.batch import IGNORED, Batch
from scaling.config.run_config import RunConfig
from scaling.data.entropy import split_entropies
from scaling.data.objective import make_batch_for
from scaling.data.read.shard_reader import read_shard
from scaling.data.read.stream import SequenceStream
from scaling.data.shards import CorpusIndex
from scaling.data.tokenizer.byte_level import Tokenizer, load_tokenizer
from scaling.planner.cost.lengths import lengths


def baselines(config: RunConfig, directory: str | Path) -> dict[str, float]:
    """Nats per scored target on held-out text, of models fitted on the training text.

    causal_lm: {"unigram", "bigram"}, of every token. Else {"unigram"}, of the targets that are
    scored: hidden tokens, targets of pairs. Markers of hidden spans and ends count as known, so
    that a model below it knows something of the words. Raises DataError as reading shards does.
    """
    if config.objective.kind == "causal_lm":
        return {name: value["nats_per_token"] for name, value in split_entropies(directory).items()}
    index = CorpusIndex.load(directory)
    tokenizer = load_tokenizer(str(directory), index)
    nats_V = unigram_nats(directory, index, config.vocab_size)
    return {
        "unigram": target_nats(nats_V, held_out(config, directory, index, tokenizer), tokenizer)
    }


def unigram_nats(directory: str | Path, index: CorpusIndex, vocab_size: int) -> np.ndarray:
    """-log p of each token (V,), one added to every count of the training text."""
    counts_V = np.ones(vocab_size)
    for shard in index.split("train"):
        counts_V += np.bincount(read_shard(directory, index, shard), minlength=vocab_size)
    return -np.log(counts_V / counts_V.sum())


def target_nats(nats_V: np.ndarray, batch: Batch, tokenizer: Tokenizer) -> float:
    """Mean over the scored targets, those that only mark a place at none."""
    targets = batch.targets_BT[batch.targets_BT != IGNORED].numpy()
    words = targets[~np.isin(targets, [tokenizer.eot_id, *tokenizer.sentinel_ids])]
    return float(nats_V[words].sum() / len(targets))


def held_out(
    config: RunConfig, directory: str | Path, index: CorpusIndex, tokenizer: Tokenizer
) -> Batch:
    """The sequences that the run is evaluated on."""
    shape = lengths(config)
    with SequenceStream(
        str(directory),
        index,
        "val",
        seq_len=shape.stride,
        overlap=shape.overlap,
        seed=config.train.seed,
        shuffle=False,
    ) as stream:
        ks_N = np.arange(min(config.train.eval_sequences, stream.n_sequences))
        return make_batch_for(config, tokenizer)(stream.read(ks_N), ks_N)
