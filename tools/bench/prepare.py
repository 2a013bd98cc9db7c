"""Measure tokens per second and peak memory of scaling.prepare against the size of the corpus.

Usage: python tools/bench/prepare.py [MB ...]     sizes of the text, default 100 400 1600 3200

Each size is a file of JSON lines: paragraphs drawn from the standard library's sources, each
document with a number of its own, so that none is a duplicate. It is prepared by two processes with
tokenizer=byte and, up to 400 MB, with tokenizer=bpe learnt from 20 MB. Memory is the largest
resident size that the kernel saw of any process (wait4), tokens/s what the command prints.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from quiet import wait_for_quiet
from rich.console import Console
from rich.table import Table

PARAGRAPH_LINES, DOCUMENT_PARAGRAPHS = 8, 12
LARGEST = {"byte": 10**9, "bpe": 400}
"""Largest corpus in MB: larger ones take long and show nothing new."""
TOKENIZERS = {"byte": (), "bpe": ("vocab_size=8192", "tokenizer_sample=20M")}


def documents(n_bytes: int) -> Iterator[str]:
    """Yield about `n_bytes` of JSON lines."""
    rng = random.Random(0)
    lines = [
        line
        for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
        for line in path.read_text().splitlines()
    ]
    paragraphs = [
        "\n".join(lines[i : i + PARAGRAPH_LINES]) for i in range(0, len(lines), PARAGRAPH_LINES)
    ]
    number = 0
    while n_bytes > 0:
        text = "\n\n".join([f"document {number}", *rng.choices(paragraphs, k=DOCUMENT_PARAGRAPHS)])
        line = json.dumps({"text": text}) + "\n"
        number, n_bytes = number + 1, n_bytes - len(line)
        yield line


def prepare(source: Path, tokenizer: str, scratch: Path) -> tuple[str, float, float]:
    """The speed that the command prints, its seconds, and its peak memory in MB."""
    out = scratch / f"{source.stem}-{tokenizer}"
    command = [
        sys.executable,
        "-m",
        "scaling.prepare",
        f"inputs={source}",
        f"out={out}",
        f"tokenizer={tokenizer}",
        "processes=2",
        *TOKENIZERS[tokenizer],
    ]
    begun_s = time.perf_counter()
    with (scratch / "printed").open("w") as printed:
        process = subprocess.Popen(command, stdout=printed, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, f"{' '.join(command)} ended with {status}"
    subprocess.run(["rm", "-r", str(out)], check=True)
    speed = re.search(r"^(\d+) tokens/s", (scratch / "printed").read_text(), flags=re.MULTILINE)
    assert speed is not None
    return speed.group(1), time.perf_counter() - begun_s, usage.ru_maxrss / 1000


def main() -> None:
    sizes = [int(word) for word in sys.argv[1:]] or [100, 400, 1600, 3200]
    table = Table(
        "text",
        *(f"{name}: {what}" for name in TOKENIZERS for what in ("s", "M tokens/s", "peak MB")),
    )
    with tempfile.TemporaryDirectory() as scratch:
        for size in sizes:
            source = Path(scratch, f"{size}.jsonl")
            with source.open("w") as file:
                file.writelines(documents(size * 10**6))
            row = [f"{size} MB"]
            for tokenizer in TOKENIZERS:
                if size > LARGEST[tokenizer]:
                    continue
                wait_for_quiet(20.0)
                speed, seconds, peak_mb = prepare(source, tokenizer, Path(scratch))
                row += [f"{seconds:.0f}", f"{int(speed) / 1e6:.2f}", f"{peak_mb:.0f}"]
            table.add_row(*row)
            source.unlink()
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
