"""Train the smallest model of every family x attention x position for some steps, and print the
table of docs/models.md.

Usage: OMP_NUM_THREADS=1 python tools/models_table.py [--steps 300] [--out FILE.json] [--families
gpt ...] [--attentions full ...]

Real text (the default corpus, as bytes), the same sequences for all of a family, in this process
with the plain engine. The loss is that of held-out targets, in nats, before and after; beside it
stands the entropy of these targets under the unigram frequencies of the training text. A
combination that composition refuses is listed with its reason.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from scaling.batch import Batch
from scaling.composition.compose import compose
from scaling.config.run_config import RunConfig
from scaling.data.baselines import held_out, target_nats, unigram_nats
from scaling.data.objective import make_batch_for
from scaling.data.prepare.cached import ensure_corpus
from scaling.data.read.stream import SequenceStream
from scaling.data.shards import CorpusIndex
from scaling.data.tokenizer.byte_level import load_tokenizer
from scaling.engine.reference import ReferenceEngine
from scaling.errors import ConfigError
from scaling.model.attention import ATTENTIONS
from scaling.model.position import POSITIONS
from scaling.planner.cost.lengths import lengths
from scaling.planner.layout import Layout

FAMILIES = {
    "gpt": ("model=gpt_nano",),
    "bert": ("model=bert_tiny",),
    "t5": ("model=t5_tiny",),
    "transformer": ("model=transformer_base", "objective=span_corruption", "model.dropout=0"),
}
SMALL = (
    "model.n_layers=2",
    "model.d_model=64",
    "model.n_heads=4",
    "model.n_kv_heads=null",
    "model.d_head=null",
    "model.d_ff=192",
    "train.seq_len=64",
    "train.global_batch_size=16",
    "train.eval_sequences=128",
    "model.init_std=0.05",
    "tokenizer=byte",
    "tokenizer.special_tokens=all",
    "tokenizer.n_sentinels=16",
    "tokenizer.vocab_size=277",
)
NARROW = {"local": ("attention.window=16",), "hierarchical": ("attention.block=8",)}
"""A window below the 64 positions, which the defaults would cover completely."""
PEAK_LR, WARMUP_STEPS = 4e-3, 15


@dataclass(frozen=True)
class Row:
    """One combination: losses in nats per scored target, or the reason for its refusal."""

    family: str
    attention: str
    position: str
    before: float | None = None
    after: float | None = None
    unigram: float | None = None
    seconds: float | None = None
    refused: str | None = None


class Family:
    """The corpus of one family, and its unigram model."""

    def __init__(self, name: str) -> None:
        self.name = name
        config = self.config("full", "none")
        self.directory = str(ensure_corpus(config.data, config.tokenizer))
        self.index = CorpusIndex.load(self.directory)
        self.tokenizer = load_tokenizer(self.directory, self.index)
        self.nats_V = unigram_nats(self.directory, self.index, config.vocab_size)

    def config(self, attention: str, position: str) -> RunConfig:
        return compose(
            [
                *FAMILIES[self.name],
                *SMALL,
                f"attention={attention}",
                f"position={position}",
                *NARROW.get(attention, ()),
            ]
        )

    def held_out(self, config: RunConfig) -> Batch:
        return held_out(config, self.directory, self.index, self.tokenizer)

    def stream(self, config: RunConfig) -> SequenceStream:
        shape = lengths(config)
        return SequenceStream(
            self.directory, self.index, "train", shape.stride, seed=0, overlap=shape.overlap
        )


def train(family: Family, attention: str, position: str, steps: int) -> Row:
    try:
        config = family.config(attention, position)
    except ConfigError as error:
        return Row(family.name, attention, position, refused=" ".join(str(error).split()))
    begun_s = time.perf_counter()
    batch, make_batch = family.held_out(config), make_batch_for(config, family.tokenizer)
    n = config.train.global_batch_size
    layout = Layout(
        dp=1,
        tp=1,
        pp=1,
        zero_stage=1,
        micro_batch_size=n,
        grad_accum_steps=1,
        activation_checkpointing="none",
        engine="reference",
    )
    engine = ReferenceEngine(config, layout, torch.device("cpu"))
    before = engine.evaluate([batch]).loss
    with family.stream(config) as stream:
        for step in range(steps):
            ks_N = np.arange(step * n, (step + 1) * n)
            lr = PEAK_LR * min((step + 1) / WARMUP_STEPS, 1 - 0.9 * step / steps)
            engine.step([make_batch(stream.read(ks_N), ks_N)], lr=lr)
    after = engine.evaluate([batch]).loss
    unigram = target_nats(family.nats_V, batch, family.tokenizer)
    return Row(
        family.name, attention, position, before, after, unigram, time.perf_counter() - begun_s
    )


def table(rows: list[Row]) -> str:
    """Markdown: one table per family, attention down and position across; then the reasons of
    refusals."""
    out = []
    for name, of_family in itertools.groupby(rows, key=lambda row: row.family):
        group = list(of_family)
        known = [row for row in group if row.after is not None]
        before = [row.before for row in known if row.before]
        out += [
            f"### {name}",
            "",
            f"Unigram entropy of the targets {known[0].unigram:.2f}; before training "
            f"{min(before):.2f} to {max(before):.2f}.",
            "",
            "| attention | " + " | ".join(POSITIONS) + " |",
            "| --- " * (len(POSITIONS) + 1) + "|",
        ]
        for attention, cells in itertools.groupby(group, key=lambda row: row.attention):
            shown = [f"{row.after:.2f}" if row.after is not None else "refused" for row in cells]
            out.append(f"| {attention} | " + " | ".join(shown) + " |")
        out.append("")
    reasons = {(row.attention, row.position): row.refused for row in rows if row.refused}
    return "\n".join(
        [*out, *(f"- `{a}` with `{p}`: {reason}" for (a, p), reason in reasons.items())]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, help="the rows as JSON")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--attentions", nargs="+", choices=ATTENTIONS, default=list(ATTENTIONS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in arguments.families:
        family = Family(name)
        for attention, position in itertools.product(arguments.attentions, POSITIONS):
            rows.append(train(family, attention, position, arguments.steps))
            print(rows[-1], flush=True)
            if arguments.out:
                arguments.out.write_text(
                    json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8"
                )
    print(table(rows))


if __name__ == "__main__":
    main()
