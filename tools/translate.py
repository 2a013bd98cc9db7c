"""Train a small German-English Transformer on Multi30k, translate its test set by beam search, and
report BLEU.

Usage: python tools/translate.py MULTI30K_DIR --out DIR [--translate-only] [KEY=VALUE ...]

MULTI30K_DIR holds train.{de,en}.gz and test_2016_flickr.{de,en}.gz
(https://github.com/multi30k/dataset, data/task1/raw). Text is lower-cased, as in the published
scores. Further arguments go to scaling.run, whose command is printed; it is resumed if it was cut
off. Needs sacrebleu (pip install -c constraints.txt -e ".[translation]").
"""

from __future__ import annotations

import argparse
import gzip
import subprocess
import sys
import time
from pathlib import Path

import torch
from rich.progress import track

from scaling.data.tokenizer.byte_level import Tokenizer
from scaling.inference.beam_search import beam_search
from scaling.inference.trained import open_trained
from scaling.model import GenerativeModel
from scaling.weights.source import find_source

NAME = "de_en"
SETTINGS = (
    f"run.name={NAME}",
    "model=transformer_base",
    "model.n_layers=3",
    "model.d_model=192",
    "model.n_heads=4",
    "model.d_ff=768",
    "model.dropout=0.2",
    "data=text_pairs",
    "data.val_fraction=0.02",
    "train.global_batch_size=16",
    "train.seq_len=256",
    "train.n_tokens=10M",
    "optim.lr=2e-3",
    "schedule=cosine",
    "schedule.warmup_tokens=5%",
    "train.eval_every=250",
)
"""Sized so that two CPU cores need half an hour: 3.9 M parameters, about ten passes over the 29 000
pairs (assumption)."""
N_BEAMS, LENGTH_PENALTY = 4, 0.6
"""The beam of Vaswani et al. 2017, section 6.1."""
EXTRA_TOKENS = 50
"""Tokens by which a translation can exceed its source (Vaswani et al. 2017, section 6.1)."""


def read_lines(path: Path) -> list[str]:
    return gzip.decompress(path.read_bytes()).decode("utf-8").lower().splitlines()


def train(source: Path, out: Path, overrides: list[str]) -> None:
    for language in ("de", "en"):
        (out / f"train.{language}").write_text(
            "\n".join(read_lines(source / f"train.{language}.gz")) + "\n", encoding="utf-8"
        )
    paths = (
        f"data.path={out / 'train.de'}",
        f"data.target_path={out / 'train.en'}",
        f"run.root={out / 'runs'}",
    )
    command = [sys.executable, "-m", "scaling.run", *SETTINGS, *paths, *overrides]
    print(" ".join(command), flush=True)
    subprocess.run(command, check=True)


@torch.no_grad()
def translate(model: GenerativeModel, tokenizer: Tokenizer, sentence: str) -> str:
    source = [*tokenizer.encode_batch([sentence])[0].tolist(), tokenizer.eot_id]
    best, *_ = beam_search(
        model,
        [tokenizer.special("pad")],
        len(source) + EXTRA_TOKENS,
        eos_id=tokenizer.eot_id,
        n_beams=N_BEAMS,
        length_penalty=LENGTH_PENALTY,
        source_ids=source,
    )
    return tokenizer.decode(best.tokens).strip()


def main() -> None:
    import sacrebleu

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("multi30k", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--translate-only", action="store_true")
    arguments, overrides = parser.parse_known_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if not arguments.translate_only:
        train(arguments.multi30k, arguments.out, overrides)
    source = find_source(NAME, str(arguments.out / "runs"), print)
    run = open_trained(source, torch.device("cpu"))
    assert isinstance(run.model, GenerativeModel)
    sources, references = (
        read_lines(arguments.multi30k / f"test_2016_flickr.{language}.gz")
        for language in ("de", "en")
    )
    begun_s = time.perf_counter()
    found = [
        translate(run.model, run.tokenizer, sentence)
        for sentence in track(sources, description="translating")
    ]
    seconds = time.perf_counter() - begun_s
    (arguments.out / "translations.en").write_text("\n".join(found) + "\n", encoding="utf-8")
    metric = sacrebleu.metrics.BLEU()
    print(f"{metric.corpus_score(found, [references])}\n{metric.get_signature()}")
    print(f"step {run.step}; {len(sources)} sentences in {seconds:.0f} s; for example:")
    for source, translation, reference in list(zip(sources, found, references, strict=True))[:5]:
        print(f"  {source}\n    {translation}\n    ({reference})")


if __name__ == "__main__":
    main()
