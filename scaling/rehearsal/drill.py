"""The drill itself: train unbroken, then again with processes killed at random steps, started again as often as it takes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scaling.config import RunConfig
from scaling.errors import LaunchError
from scaling.files import split_lines
from scaling.metrics import names
from scaling.metrics.record import Record, decode_record
from scaling.rehearsal.cluster import Nodes
from scaling.rehearsal.options import DrillOptions
from scaling.rehearsal.processes import DRIVER, NODE, by_kind
from scaling.rundir import RunDir

_POLL_S = 0.05
_LAST = 0.95
"""Of the run, up to which something is killed: what dies at the end may have ended already."""


@dataclass
class Kill:
    """step: the last on record when `kind` was killed. lost_s: until a later step was on record; None where the run ended."""

    kind: str
    step: int
    at_s: float
    world_size: int | None
    lost_s: float | None = None


@dataclass
class Outcome:
    """starts: of the driver."""

    kills: list[Kill] = field(default_factory=list)
    starts: int = 0


def last_record(metrics: Path) -> Record | None:
    """Of a file that is being written."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            lines, _ = split_lines(file.read())
        return decode_record(lines[-1]) if lines else None
    except (FileNotFoundError, ValueError):
        return None


class Drill:
    """words: of the run, as for scaling.run. sizes: numbers of workers that the run may be started with."""

    def __init__(
        self, options: DrillOptions, words: Sequence[str], config: RunConfig, sizes: Sequence[int], directory: Path,
        seed: int, nodes: Nodes | None, say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._options, self._words, self._config, self._sizes = options, list(words), config, sizes
        self._directory, self._nodes, self._say = directory, nodes, say
        self._random = random.Random(seed)

    def run_dir(self, name: str) -> RunDir:
        return RunDir(self._directory / name / f"{self._config.name}-{self._config.run_id}")

    def _start(self, name: str, *more: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "scaling.run", *self._words, f"run.root={self._directory / name}", *more]
        environment = os.environ | (self._nodes.environment if self._nodes else {})
        with (self._directory / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
            )

    def unbroken(self) -> RunDir:
        """Train once without a kill. Raises LaunchError where that fails."""
        code = self._start("unbroken").wait()
        if code:
            raise self._failed("unbroken", code)
        return self.run_dir("unbroken")

    def broken(self, n_steps: int, hours_between_failures: float) -> Outcome:
        """Train with kills. Raises LaunchError where the run does not go on after one."""
        more = [] if any(word.startswith("cluster.hours_between") for word in self._words) else [
            f"cluster.hours_between_failures={hours_between_failures}"
        ]  # fmt: skip
        last = max(2, int(_LAST * n_steps))
        steps = sorted(self._random.randint(1, last) for _ in range(self._options.kills))
        outcome, metrics = Outcome(), self.run_dir("broken").metrics
        process, hit = self._restart(outcome, more), None
        changed_s, seen = time.monotonic(), -1
        while (code := process.poll()) != 0:
            record = last_record(metrics)
            step = int(record[names.STEP]) if record else 0
            if step != seen:
                changed_s, seen = time.monotonic(), step
            if hit is not None and step > hit.step:
                hit.lost_s, hit = round(time.time() - hit.at_s, 2), None
                self._mend()
            if code is not None:
                if code == 2 or (hit is None and code != 75):
                    raise self._failed("broken", code)
                process, changed_s = self._restart(outcome, more), time.monotonic()
            elif hit is None and steps and step >= steps[0]:
                steps.pop(0)
                hit = self._kill(process, record)
                outcome.kills.append(hit)
            if time.monotonic() - changed_s > self._options.timeout_s:
                process.kill()
                raise self._failed("broken", None)
            time.sleep(_POLL_S)
        return outcome

    def _restart(self, outcome: Outcome, more: Sequence[str]) -> subprocess.Popen[bytes]:
        size = []
        if outcome.starts and self._options.resize and len(self._sizes) > 1 and self._nodes is None:
            size = [f"cluster.devices_per_node={self._random.choice(self._sizes)}"]
        outcome.starts += 1
        return self._start("broken", *more, *size)

    def _kill(self, process: subprocess.Popen[bytes], record: Record | None) -> Kill:
        """One process of a kind drawn from those that there are."""
        found = self._victims(process)
        kind = self._random.choice(sorted(found))
        pid = self._random.choice(sorted(found[kind]))
        step = int(record[names.STEP]) if record else 0
        world_size = int(record[names.RUN_WORLD_SIZE]) if record and names.RUN_WORLD_SIZE in record else None
        at_s = time.time()
        os.kill(pid, signal.SIGKILL)
        self._say(f"step {step}: killed the {kind} (pid {pid})")
        return Kill(kind, step, at_s, world_size)

    def _victims(self, process: subprocess.Popen[bytes]) -> dict[str, list[int]]:
        found = by_kind(process.pid)
        if self._nodes is not None:
            found = {}
            for root in self._nodes.roots:
                for kind, pids in by_kind(root).items():
                    found.setdefault(kind, []).extend(pids)
            living = self._nodes.living
            found[NODE] = [pid for root in living for pid in by_kind(root).get(NODE, [])] if len(living) > 1 else []
        return {kind: pids for kind, pids in found.items() if pids} | {DRIVER: [process.pid]}

    def _mend(self) -> None:
        """Bring machines back that were lost."""
        if self._nodes is not None:
            for _ in range(self._options.nodes - len(self._nodes.living)):
                self._nodes.add()

    def _failed(self, name: str, code: int | None) -> LaunchError:
        log = self._directory / f"{name}.log"
        what = f"ended with exit code {code}" if code is not None else f"made no step for {self._options.timeout_s:.0f} s"
        return LaunchError(f"the {name} run {what}", None, f"Its output is in {log}.")
