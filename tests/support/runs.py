"""Whole runs as processes of their own: started, watched, killed, and their remains looked for."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

N_STEPS, N_STEPS_ALONE = 200, 600
"""Steps of two workers, and of one, which takes a third of the time for a step and is to be caught
in the middle too."""
TINY = (
    "data=text_files",
    "tokenizer=byte",
    "model.n_layers=2",
    "model.d_model=32",
    "model.n_heads=2",
    "train.seq_len=64",
    "train.global_batch_size=8",
    f"train.n_tokens={N_STEPS * 512}",
    "optim.lr=2e-3",
    "train.log_every=1",
    "train.eval_every=20",
    "train.sample_tokens=8",
    "schedule=constant",
    "schedule.warmup_tokens=5120",
    "optim.lr=2e-3",
    "checkpoint.every_steps=10",
)
TWO_WORKERS = ("cluster.devices_per_node=2",)
ONE_WORKER = (
    "layout=manual",
    "layout.dp=1",
    "layout.engine=reference",
    f"train.n_tokens={N_STEPS_ALONE * 512}",
)
SECRETS = {
    "WANDB_API_KEY": "5ec7e7" + "0a" * 17,
    "HF_TOKEN": "hf_" + "5ec7e7" * 6,
    "AWS_ACCESS_KEY_ID": "AKIA" + "5EC7E7" * 2 + "ABCD",
    "AWS_SECRET_ACCESS_KEY": "5ec7e7/aws+" * 4,
    "RAY_AUTH_TOKEN": "5ec7e7ray" * 7,
    "HTTPS_PROXY": "http://me:5ec7e7prx@localhost:9",
    "MY_PASSWORD": "5ec7e7 of my own",
}
"""Secrets in the environment of every run: none may come back in anything that is written or
shown."""
FOLLOWED_STEPS = 50
"""Steps over which a run is compared with one that adds up in another order; the difference of
their losses grows."""
COMPARED = (
    "n_tokens",
    "flops",
    "train/loss",
    "train/lr",
    "train/grad_norm",
    "val/loss",
    "val/bits_per_byte",
)
"""What of a record does not depend on how fast the machine was."""


def write_text(directory: Path) -> str:
    """Sixty files of sentences with a grammar that two layers can learn in seconds; returns the
    glob that finds them."""
    directory.mkdir()
    rng = random.Random(0)
    nouns, verbs = ("cat", "dog", "bird", "mat", "tree"), ("sees", "likes", "hears")
    for number in range(60):
        sentences = (
            f"the {rng.choice(nouns)} {rng.choice(verbs)} a {rng.choice(nouns)}." for _ in range(50)
        )
        (directory / f"{number:03d}.txt").write_text(" ".join(sentences) + "\n")
    return f"{directory}/*.txt"


@dataclass
class Workplace:
    """A corpus, its cache and a directory for runs, all empty at first."""

    root: Path
    text: str
    home: str

    def command(self, *overrides: str, root: Path | None = None) -> list[str]:
        """The command of a tiny run whose directory lies in `root`."""
        where = (
            f"run.root={root or self.root / 'runs'}",
            f"data.path='{self.text}'",
            f"data.cache_dir={self.root / 'cache'}",
        )
        return [sys.executable, "-m", "scaling.run", *TINY, *where, *overrides]

    def start(
        self, *overrides: str, root: Path | None = None, env: Mapping[str, str] | None = None
    ) -> Run:
        log = self.root / f"output-{time.monotonic_ns()}.txt"
        environment = (
            os.environ | SECRETS | {"HOME": self.home, "WANDB_MODE": "offline"} | (env or {})
        )
        return Run(
            self.command(*overrides, root=root), root or self.root / "runs", log, environment
        )

    def finish(
        self,
        *overrides: str,
        root: Path | None = None,
        env: Mapping[str, str] | None = None,
        code: int = 0,
    ) -> Run:
        """Run to the end, which must have this exit code."""
        run = self.start(*overrides, root=root, env=env)
        assert run.wait() == code, run.output
        return run


class Run:
    """One process of `scaling.run`, with every process that it was seen to have started."""

    def __init__(self, command: list[str], root: Path, log: Path, env: Mapping[str, str]) -> None:
        self.root = root
        self._log = log
        self.seen: set[tuple[int, int]] = set()
        self._next_look = 0.0
        with self._log.open("wb") as out:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=dict(env),
                cwd=log.parent,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        """All that was printed, on one line: a console without a terminal folds its lines."""
        return " ".join(self._log.read_text().split())

    @property
    def directory(self) -> Path:
        (found,) = (path.parent for path in self.root.glob("*/driver.lock"))
        return found

    def records(self) -> list[dict[str, Any]]:
        return [record for path in self.root.glob("*/metrics.jsonl") for record in read_lines(path)]

    def watch(self) -> None:
        """Note the processes that the run has now, twice a second: to look takes a walk through
        /proc."""
        if time.monotonic() >= self._next_look:
            self.seen |= descendants(self.process.pid)
            self._next_look = time.monotonic() + 0.5

    def last_step(self) -> int:
        """The step of the last record, from the end of the file alone."""
        return max((_last_step(path) for path in self.root.glob("*/metrics.jsonl")), default=0)

    def wait(self, timeout_s: float = 280) -> int:
        """The exit code; a run that takes longer is killed."""
        deadline = time.monotonic() + timeout_s
        while self.process.poll() is None:
            self.watch()
            if time.monotonic() > deadline:
                self.process.kill()
                raise AssertionError(f"no end after {timeout_s} s: {self.output}")
            time.sleep(0.1)
        return self.process.returncode

    def wait_for_step(self, step: int, timeout_s: float = 240) -> None:
        """Wait until metrics.jsonl has a record of `step` or a later one."""
        deadline = time.monotonic() + timeout_s
        while self.last_step() < step:
            self.watch()
            assert self.process.poll() is None, (
                f"ended with {self.process.returncode} before step {step}: {self.output}"
            )
            assert time.monotonic() < deadline, (
                f"step {step} was not reached in {timeout_s} s: {self.output}"
            )
            time.sleep(0.02)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def workers(self) -> list[int]:
        """The training workers that Ray runs for it."""
        return [
            pid
            for pid, _ in descendants(self.process.pid)
            if b"TrainWorker" in _read(f"/proc/{pid}/cmdline")
        ]

    def leftovers(self, patience_s: float = 15) -> list[str]:
        """Processes seen before that still live after the end; those that are closing have
        `patience_s` to do it."""
        deadline = time.monotonic() + patience_s
        while (
            left := [pid for pid, born in self.seen if _born(pid) == born]
        ) and time.monotonic() < deadline:
            time.sleep(0.2)
        return [
            _read(f"/proc/{pid}/cmdline").replace(b"\0", b" ").decode(errors="replace")
            for pid in left
        ]


def _last_step(path: Path) -> int:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 8192))
        lines = file.read().split(b"\n")[:-1]
    return int(json.loads(lines[-1])["step"]) if lines else 0


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file that may be being written."""
    return (
        [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] if path.exists() else []
    )


def secrets_shown(run: Run) -> list[str]:
    """Files of a run directory, and its output, that hold a planted secret."""
    parts = [re.search("5ec7e7.*", value, re.IGNORECASE) for value in SECRETS.values()]
    planted = [found.group().split("@")[0].encode() for found in parts if found]
    written = {str(path): path.read_bytes() for path in run.directory.rglob("*") if path.is_file()}
    assert len(planted) == len(SECRETS)
    assert len(written) > len(("config.yaml", "metrics.jsonl", "provenance.json"))
    written["output"] = run.output.encode()
    return [
        name for name, content in written.items() if any(secret in content for secret in planted)
    ]


def curve(run: Run) -> list[dict[str, float]]:
    """The records, without what depends on the clock. Asserts that no (step, kind) repeats."""
    records = [{k: r[k] for k in ("step", *COMPARED) if k in r} for r in run.records()]
    keys = [(record["step"], "val/loss" in record) for record in records]
    assert len(keys) == len(set(keys)), "a step is recorded twice"
    return records


def fp32_rtol(n_steps: int) -> float:
    """How far another order of summation, on this machine or another, may move the losses of
    `TINY`.

    Forwards and backwards chain, in each of two layers, sums of D = 32, T = 64 and d_ff = 128
    terms; a gradient sums over 8 sequences of T. A step begins where the one before it ended.
    """
    from tests.support.exact import rounding_bound

    return rounding_bound(n_terms=2 * (4 * 32 + 64 + 128) + 8 * 64, n_layers=2 * n_steps)


def events(run: Run, *kinds: str) -> list[dict[str, Any]]:
    return [event for event in read_lines(run.directory / "events.jsonl") if event["kind"] in kinds]


def descendants(pid: int) -> set[tuple[int, int]]:
    """(pid, start time) of every process below `pid`."""
    parents: dict[int, list[int]] = {}
    for other in filter(str.isdigit, os.listdir("/proc")):
        fields = _read(f"/proc/{other}/stat").rpartition(b")")[2].split()
        if fields:
            parents.setdefault(int(fields[1]), []).append(int(other))
    found, waiting = set(), [pid]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found |= {(child, born) for child in children if (born := _born(child)) is not None}
        waiting += children
    return found


def listening_beyond_loopback(pids: Iterable[int]) -> list[str]:
    """Addresses (hexadecimal, as the kernel shows them) on which these processes accept connections
    from outside."""
    sockets = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for row in _read(table).decode().splitlines()[1:]:
            fields = row.split()
            if fields[3] == "0A":
                sockets[f"socket:[{fields[9]}]"] = fields[1]
    found = []
    for pid in pids:
        for handle in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                address = sockets.get(os.readlink(handle), "")
            except OSError:  # closed since it was listed
                continue
            if address and address.split(":")[0] not in LOOPBACK:
                found.append(f"{address} of {_read(f'/proc/{pid}/cmdline')[:80]!r}")
    return found


LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:  # the process has ended
        return b""


def _born(pid: int) -> int | None:
    fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    return int(fields[19]) if fields and fields[0] != b"Z" else None
