"""Damage a small checkpoint at every place, and check that loading finds the damage or loads the
same state.

Usage: python tools/flip_bytes.py [CHECKPOINT]     a directory step-NNNNNNNN; default: one of a
  model that is trained here

Of every file of the checkpoint: every byte with each of its eight bits flipped alone and with all
of them flipped, and the file cut off at every length. Each time the checkpoint is verified as a
resuming run verifies it. Found: it is refused by a CheckpointError. Harmless: it is accepted, and
its manifest and all of its tensors are those of the undamaged one, bit for bit. Anything else is
printed and ends the tool with 1.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from safetensors.numpy import load

from scaling.checkpoint.store import committed, verify
from scaling.composition.compose import compose
from scaling.errors import CheckpointError
from scaling.launch.run import drive
from scaling.runs.directory import RunDir

MASKS = (*(1 << bit for bit in range(8)), 0xFF)
CUT = "cut off"
TINY = (
    "data=text_files",
    "tokenizer=byte",
    "model.n_layers=1",
    "model.d_model=4",
    "model.n_heads=1",
    "model.d_ff=4",
    "position=learned",
    "train.seq_len=8",
    "train.global_batch_size=2",
    "train.n_tokens=64",
    "train.sample_tokens=0",
    "layout=manual",
    "layout.dp=1",
    "layout.engine=reference",
)


def make_checkpoint(root: Path) -> Path:
    """Make the checkpoint of a whole run on a few sentences."""
    for number in range(8):
        (root / f"{number}.txt").write_text(f"Sentence {number} of eight is not long. " * 4)
    words = (
        *TINY,
        f"data.path='{root}/*.txt'",
        f"data.cache_dir={root}/cache",
        f"run.root={root}/runs",
    )
    config = compose(words)
    assert drive(config) == 0
    return committed(RunDir.for_config(config).checkpoints)[-1][1]


def state_of(path: Path) -> Any:
    """The state that a run loads from a checkpoint: the manifest, and all tensors as bytes. Raises
    CheckpointError for a refused checkpoint."""
    manifest = verify(path)
    tensors = {
        name: load((path / name).read_bytes())
        for name in manifest.files
        if name.endswith(".safetensors")
    }
    return manifest, {
        name: {key: (v.shape, v.tobytes()) for key, v in file.items()}
        for name, file in tensors.items()
    }


def damages(content: bytes, every: int = 1) -> Iterator[tuple[str, int, bytes]]:
    """(kind, place, damaged content) of each damage, at every n-th place."""
    for place in range(0, len(content), every):
        for mask in MASKS:
            changed = bytearray(content)
            changed[place] ^= mask
            yield ("all bits" if mask == 0xFF else "one bit"), place, bytes(changed)
    for length in range(0, len(content), every):
        yield CUT, length, content[:length]


def try_all(checkpoint: Path, every: int = 1) -> tuple[Counter[tuple[str, str, str]], list[str]]:
    """Count each (file, kind of damage, "found" or "harmless"), and list the damages that are
    neither."""
    sound, seen, wrong = state_of(checkpoint), Counter[tuple[str, str, str]](), []
    for file in sorted(checkpoint.iterdir()):
        content = file.read_bytes()
        for kind, place, damaged in damages(content, every):
            file.write_bytes(damaged)
            try:
                outcome = "harmless" if state_of(checkpoint) == sound else "wrong"
            except CheckpointError:
                outcome = "found"
            except Exception as error:
                outcome = f"{type(error).__name__}: {error}"
            seen[file.name, kind, outcome] += 1
            if outcome not in ("found", "harmless"):
                wrong.append(f"{file.name}, {kind} at {place}: {outcome}")
        file.write_bytes(content)
    return seen, wrong


def main() -> int:
    begun_s = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        given = Path(sys.argv[1]) if len(sys.argv) > 1 else make_checkpoint(root)
        copy = Path(shutil.copytree(given, root / "copy" / given.name))
        sizes = {file.name: file.stat().st_size for file in sorted(copy.iterdir())}
        seen, wrong = try_all(copy)
    table = Table("file", "bytes", "damage", "tried", "found", "harmless", "wrong")
    for name, size in sizes.items():
        for kind in ("one bit", "all bits", CUT):
            of_kind = {
                outcome: n
                for (file, what, outcome), n in seen.items()
                if (file, what) == (name, kind)
            }
            found, harmless, tried = (
                of_kind.get("found", 0),
                of_kind.get("harmless", 0),
                sum(of_kind.values()),
            )
            table.add_row(
                name,
                str(size),
                kind,
                str(tried),
                str(found),
                str(harmless),
                str(tried - found - harmless),
            )
    Console().print(table)
    print(
        f"{sum(seen.values())} damages in {time.perf_counter() - begun_s:.0f} s",
        *wrong[:20],
        sep="\n",
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
