"""A corpus that is there, or several mixed, as what a run reads: shards to check, a tokenizer, and
sequences."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from scaling.config.run_config import RunConfig
from scaling.data.io.fetch import join, local_path
from scaling.data.mixture import MIXTURE_FILE, Component, Mixture, fingerprint, read_mixture
from scaling.data.read.source import Streaming
from scaling.data.read.stream import BadShard, Sequences, SequenceStream, check_shards
from scaling.data.shards import CorpusIndex
from scaling.data.tokenizer.byte_level import Tokenizer, load_tokenizer
from scaling.errors import DataError
from scaling.metrics import names
from scaling.planner.cost.lengths import lengths

EVAL_SPLIT = "val"


@dataclass(frozen=True)
class Part:
    """One corpus, and for a mixture its place in it."""

    component: Component
    index: CorpusIndex


@dataclass(frozen=True)
class Corpus:
    """What lies in a directory, or behind a URL, that `ensure_corpus` gave."""

    location: str
    parts: tuple[Part, ...]
    mixed: bool
    skipped: tuple[str, ...] = ()

    @staticmethod
    def open(location: str | Path, skipped: Collection[str] = ()) -> Corpus:
        """`skipped`: shards of the train split to leave out, by the names that `check` gives them.
        Raises DataError."""
        mixed = _is_mixture(location)
        components = read_mixture(location) if mixed else [Component("", str(location), "", 1.0)]
        parts = []
        for component in components:
            index = CorpusIndex.load(component.location)
            if mixed and component.fingerprint not in (
                index.fingerprint,
                index.content_fingerprint,
            ):
                raise DataError(
                    f"{component.location} holds another corpus than when the mixture was made",
                    fix="Run it again.",
                )
            prefix = f"{component.name}/" if mixed else ""
            index = index.without(
                "train", [name.removeprefix(prefix) for name in skipped if name.startswith(prefix)]
            )
            parts.append(Part(replace(component, fingerprint=index.fingerprint), index))
        return Corpus(str(location), tuple(parts), mixed, tuple(skipped))

    @property
    def fingerprint(self) -> str:
        """Hash of all that the data depends on; with the weights, where corpora are mixed."""
        if not self.mixed:
            return self.parts[0].index.fingerprint
        return fingerprint([part.component for part in self.parts])

    @property
    def content_fingerprint(self) -> str:
        """The fingerprint without counts, as earlier checkpoints have it."""
        contents = [
            replace(part.component, fingerprint=part.index.content_fingerprint)
            for part in self.parts
        ]
        return fingerprint(contents) if self.mixed else contents[0].fingerprint

    def facts(self) -> dict[str, Any]:
        """What a run notes of its corpus, dotted, so that a later change of it can be named."""
        found: dict[str, Any] = {}
        for part in self.parts:
            prefix = f"{part.component.name}." if self.mixed else ""
            info = part.index.tokenizer
            found |= {f"{prefix}dtype": part.index.dtype, f"{prefix}tokenizer": info.sha256}
            found |= {f"{prefix}vocab_size": info.vocab_size, f"{prefix}eot_id": info.eot_id}
            for split, shards in part.index.splits.items():
                found[f"{prefix}{split}.n_shards"] = len(shards)
                for key in ("n_documents", "n_tokens", "n_bytes", "size_bytes"):
                    found[f"{prefix}{split}.{key}"] = sum(getattr(shard, key) for shard in shards)
        return found

    def check(self, split: str, full: bool = False) -> list[BadShard]:
        """Shards of a split that are missing or damaged, as `check_shards`; in a mixture their
        names are COMPONENT/SHARD."""
        return [
            replace(bad, name=f"{part.component.name}/{bad.name}" if self.mixed else bad.name)
            for part in self.parts
            for bad in check_shards(part.component.location, part.index, split, full)
        ]

    def load_tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.parts[0].component.location, self.parts[0].index)

    @property
    def n_shards(self) -> int:
        return sum(len(shards) for part in self.parts for shards in part.index.splits.values())

    def n_tokens(self, split: str) -> int:
        return sum(shard.n_tokens for part in self.parts for shard in part.index.split(split))

    def stream(self, config: RunConfig, split: str) -> Sequences:
        """The sequences of a split in the order of a run; those held out unshuffled."""
        train, shape = split != EVAL_SPLIT, lengths(config)
        streams = [
            SequenceStream(
                part.component.location,
                part.index,
                split,
                seq_len=shape.stride,
                overlap=shape.overlap,
                seed=config.train.seed,
                shuffle=train,
                read_ahead=train,
                streaming=Streaming.of(config.data),
            )
            for part in self.parts
        ]
        if not self.mixed:
            return streams[0]
        return MixtureStream(
            streams, Mixture([part.component.weight for part in self.parts], config.train.seed)
        )

    def mixing(self, config: RunConfig) -> Callable[[int], dict[str, float]]:
        """The part of each corpus in the first k sequences of a mixture, and how often all of it
        was read.

        The function returned gives metrics by their names; of a single corpus none.
        """
        if not self.mixed:
            return lambda k: {}
        shape, mixture = (
            lengths(config),
            Mixture([part.component.weight for part in self.parts], config.train.seed),
        )
        n_sequences = [
            part.index.n_sequences("train", shape.stride, shape.overlap) for part in self.parts
        ]

        def after(k: int) -> dict[str, float]:
            values = {}
            for part, count, n in zip(
                self.parts, mixture.counts(k).tolist(), n_sequences, strict=True
            ):
                values[names.data_share(part.component.name)] = count / k
                values[names.data_epochs(part.component.name)] = count / n
            return values

        return after


class MixtureStream(Sequences):
    """The sequences of several streams, mixed. As `SequenceStream`, for any threads."""

    def __init__(self, streams: Sequence[SequenceStream], mixture: Mixture) -> None:
        self._streams, self._mixture = streams, mixture
        self.n_sequences = mixture.sequences_within([stream.n_sequences for stream in streams])
        # of one tokenizer, so alike in all
        self.n_read, self._dtype = streams[0].n_read, streams[0].index.dtype

    def read(self, ks: np.ndarray) -> np.ndarray:
        """Sequences number `ks` as rows, (len(ks), n_read) of the corpora's dtype. Raises DataError
        for a bad shard."""
        components, numbers = self._mixture.locate(ks)
        rows = np.empty((len(ks), self.n_read), dtype=self._dtype)
        for component in np.unique(components).tolist():
            chosen = np.flatnonzero(components == component)
            rows[chosen] = self._streams[component].read(numbers[chosen])
        return rows

    def waiting_for(self) -> list[str]:
        """Where the shards lie that some thread is waiting for."""
        return [location for stream in self._streams for location in stream.waiting_for()]

    def close(self) -> None:
        for stream in self._streams:
            stream.close()


def _is_mixture(location: str | Path) -> bool:
    path = local_path(location)
    return path is not None and os.path.exists(join(location, MIXTURE_FILE))
