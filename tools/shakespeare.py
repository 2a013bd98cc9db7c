"""Train a character-level GPT on tinyshakespeare, split as in nanoGPT (the last tenth is held out),
and report its best loss.

Usage: python tools/shakespeare.py input.txt --out DIR [KEY=VALUE ...]

input.txt is that of https://github.com/karpathy/char-rnn. The published reference (nanoGPT's
README, 10.7 M parameters, 5000 steps of 64 x 256 characters on a GPU) is 1.4697 nats a character;
with --reference this trains the same model as long. The default is for two CPU cores. Further
arguments go to scaling.run, whose command is printed; it is resumed if it was cut off.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

NAME = "shakespeare"
SETTINGS = (
    f"run.name={NAME}",
    "model=gpt_tiny",
    "model.n_layers=4",
    "model.d_model=128",
    "model.n_heads=4",
    "model.dropout=0.1",
    "data=text_files",
    "tokenizer=byte",
    "train.seq_len=128",
    "train.global_batch_size=16",
    "train.n_tokens=8M",
    "optim.lr=3e-3",
    "train.eval_every=250",
    "train.eval_sequences=1000",
    "train.sample_prompt='ROMEO:'",
    "train.sample_tokens=200",
)
REFERENCE = (
    "model.n_layers=6",
    "model.n_heads=6",
    "model.d_model=384",
    "model.dropout=0.2",
    "train.seq_len=256",
    "train.global_batch_size=64",
    "train.n_tokens=81_920_000",
    "optim.lr=1e-3",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--reference",
        action="store_true",
        help="model and budget of the published figure (wants a GPU)",
    )
    arguments, overrides = parser.parse_known_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = arguments.text.read_text(encoding="utf-8")
    cut = int(0.9 * len(text))
    for name, part in {"train.txt": text[:cut], "val.txt": text[cut:]}.items():
        path = arguments.out / name
        if not path.exists():  # a new time of change would be a new corpus
            path.write_text(part, encoding="utf-8")
    paths = (
        f"data.path={arguments.out / 'train.txt'}",
        f"data.val_path={arguments.out / 'val.txt'}",
    )
    more = (
        *(REFERENCE if arguments.reference else ()),
        *paths,
        f"run.root={arguments.out / 'runs'}",
        *overrides,
    )
    command = [sys.executable, "-m", "scaling.run", *SETTINGS, *more]
    print(" ".join(command), flush=True)
    subprocess.run(command, check=True)
    for summary in sorted((arguments.out / "runs").glob(f"{NAME}-*/summary.json")):
        loss = json.loads(summary.read_text())["best_val_loss"]
        print(f"{summary.parent.name}: best validation loss {loss:.4f} nats per character")


if __name__ == "__main__":
    main()
