"""Every command that the pages show is really run, page by page and in order, in one directory,
with small sizes.

Words are appended, never taken away, but for those of REPLACED; a plan for machines that are not
here stays a dry run.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest

from tests.docs.test_commands import OTHERS_OWN, PLACEHOLDERS
from tests.support.documented import ROOT, shown_commands

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SMALL = (
    "model.n_layers=2",
    "model.d_model=32",
    "model.n_heads=2",
    "model.d_ff=64",
    "train.seq_len=32",
    "train.global_batch_size=4",
    "train.n_tokens=2k",
    "train.eval_sequences=4",
    "train.sample_tokens=0",
    "checkpoint.every_steps=4",
    "train.log_every=1",
)
ALONE = "cluster.devices_per_node=1"
"""Starts no Ray but for studies and layouts of several workers."""
SMALL_STUDIES = {
    "study=isoflop": (
        "study.budgets=[1e9,3e9,1e10]",
        "study.sizes=[10k,20k]",
        "study.least_tokens_per_param=0.001",
        "study.most_tokens_per_param=1000",
    ),
    "+experiment=isoflop_cpu": (
        "study.budgets=[3e9,1e10,3e10]",
        "study.sizes=[10k,20k,40k,80k]",
        "study.least_tokens_per_param=0.001",
        "study.most_tokens_per_param=100000",
    ),
    "study=wsd": ("study.tokens=[1k,2k]",),
    "study=asha": ("study.n_trials=2",),
    "+experiment=lr_width_cpu": ("study.widths=[32,64]", "study.lr_factors=[1]"),
}
VOCABULARIES = ("32000", "8192")
REPLACED = {
    "step=1000": "step=4",
    "kills=20": "kills=1",
    "kills=50": "kills=1",
    "study=DIR": "study=runs/isoflop_cpu",
    "TABLE.csv": "scored.csv",
    "launch=true": "launch=false",
    **{f"vocab_size={size}": "vocab_size=300" for size in VOCABULARIES},
    **{f"tokenizer.vocab_size={size}": "tokenizer.vocab_size=300" for size in VOCABULARIES},
}
"""Names that a reader replaces too, and counts that only take long."""
NOT_RUN = {
    "python -m scaling.run plan.calibrate_from_run": "needs a device whose speed is known",
    "make": "installs into .venv; make run and make test are what a person runs first, and CI",
    "python -m pytest": "tests, which are run as tests",
    "python tools/bench": "measures for minutes, some of it a GPU or a library that is not a "
    "dependency",
    "tools/bench": "measures for minutes",
    "python tools/pictures": "rewrites the pictures of the pages",
    "python tools/fit_planner.py": "needs tables of published measurements, and rewrites constants",
    "python tools/coordinate_check.py": "trains for minutes",
    "python tools/parity.py": "trains for minutes",
    "python tools/translate.py": "needs Multi30k",
    "python tools/shakespeare.py": "needs the text of Shakespeare's works",
    "python tools/flip_bytes.py": "damages 600 files one after the other, for minutes",
    "cluster/": "needs a cloud's machine",
    "python -m scaling.plan score scored.csv": "needs a table of published measurements",
    "python -m scaling.fit table=svg_extracted_data.csv": "needs a table of others",
    "python -m scaling.fit table=isoflop_runs.csv": "needs a table of others",
    "python -m scaling.predict fit=docs/": "needs the report of the study that was run for days",
}
"""Beginnings of commands that need what is not here, each with what that is; the quick test checks
their words."""
MODELS = {
    "gpt_nano": (),
    "gpt_1b": (),
    "gpt_10m": (),
    "t5_tiny": (),
    "bert_tiny": ("model.vocab_size=null",),
}
"""Runs that pages use and which one has had to train, with the words for a small one."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the files that the pages speak of."""
    place = tmp_path_factory.mktemp("documented")
    text = "It was the best of times, it was the worst of times, and so on for a while. " * 20
    for number in range(40):
        path = place / "books" / f"part{number % 3}" / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{number}. {text}")
    (place / "crawl").mkdir()
    lines = "".join(f'{{"text": "{number} {text}"}}\n' for number in range(20))
    with pyarrow.CompressedOutputStream(str(place / "crawl" / "a.jsonl.zst"), "zstd") as packed:
        packed.write(lines.encode())
    for name, columns in (("losses.csv", ("params", "tokens")), ("runs.csv", ("params", "flops"))):
        with (place / name).open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow([*columns, "loss"])
            for n in (1e6, 3e6, 1e7, 3e7):
                for d in (2e7, 1e8, 5e8, 2e9):
                    rows.writerow(
                        [
                            n,
                            d if columns[1] == "tokens" else 6 * n * d,
                            1.7 + 400 / n**0.34 + 410 / d**0.28,
                        ]
                    )
    done = call(
        place,
        [
            "python",
            "-m",
            "scaling.fit",
            "table=losses.csv",
            "n=params",
            "d=tokens",
            "out=DIR/laws",
            "draws=50",
        ],
    )
    assert done.returncode == 0, done.stderr
    return place


def call(place: Path, words: list[str]) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "SCALING_CACHE": str(place / "cache"),
        "WANDB_MODE": "offline",
    }
    words = [sys.executable if word in ("python", "python3") else word for word in words]
    words = [str(ROOT / word) if word.startswith("tools/") else word for word in words]
    return subprocess.run(
        words,
        capture_output=True,
        text=True,
        cwd=place,
        env=environment,
        timeout=900,
        input="Ein Hund läuft.\n",
    )


def small(words: tuple[str, ...]) -> list[str]:
    """The command, with what makes it short."""
    out = [REPLACED.get(word, word) for word in words if word not in PLACEHOLDERS]
    name = out[2] if out[1:2] == ["-m"] and len(out) > 2 else ""
    if name == "scaling.run" and "--help" not in out:
        elsewhere = any(word.startswith("cluster=") for word in out)
        studies = [word for key, study in SMALL_STUDIES.items() if key in out for word in study]
        alone = [] if any(word.startswith("layout=") for word in out) else [ALONE]
        out += ["dry_run=true"] if elsewhere else [*SMALL, *alone, *studies]
    if name == "scaling.rehearse":
        out += [*SMALL, ALONE, "train.n_tokens=10k", "resizes=0"]
    if name in ("scaling.generate",):
        out += ["max_new_tokens=4"]
    if name == "scaling.fit":
        out += ["draws=50"]
    return out


def is_run(text: str) -> bool:
    return (
        "COMMAND" not in text
        and not any(text == own or text.startswith(f"{own} ") for own in OTHERS_OWN)
        and not any(text.startswith(beginning) for beginning in NOT_RUN)
    )


PAGES = list(dict.fromkeys(shown.page for shown in shown_commands()))


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run_in_order(page: str, place: Path) -> None:
    failed = []
    for shown in shown_commands():
        words = small(shown.words)
        if shown.page != page or not is_run(" ".join(words)) or len(words) < 3:
            continue
        for model in MODELS:
            if f"run={model}" in words and not list(
                (place / "runs").glob(f"{model}-*/checkpoints/step-*")
            ):
                train = [
                    "python",
                    "-m",
                    "scaling.run",
                    f"model={model}" if model != "gpt_1b" else "model=gpt_nano",
                ]
                done = call(place, [*train, f"run.name={model}", *SMALL, ALONE, *MODELS[model]])
                assert done.returncode == 0, done.stderr
        done = call(place, words)
        if done.returncode:
            failed.append(f"{' '.join(words)}\n{done.returncode}: {done.stderr[-1500:]}")
    assert not failed, "\n\n".join(failed)


def test_every_reason_not_to_run_is_of_a_command() -> None:
    texts = [" ".join(small(shown.words)) for shown in shown_commands()]
    assert [
        beginning for beginning in NOT_RUN if not any(text.startswith(beginning) for text in texts)
    ] == []
