"""The drill itself: train unbroken, then again with processes killed at random steps, started again
as often as it takes."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from scaling.config.run_config import RunConfig
from scaling.errors import EXIT_CONFIG, EXIT_FINISHED, EXIT_STOPPED, LaunchError
from scaling.metrics import names
from scaling.metrics.record import Record, decode_record
from scaling.rehearsal.cluster import Nodes
from scaling.rehearsal.options import DrillOptions
from scaling.rehearsal.outcome import RESIZE, Kill, Outcome, kill_at
from scaling.rehearsal.processes import DRIVER, NODE, WORKER, by_kind
from scaling.runs.directory import RunDir
from scaling.runs.files import split_lines
from scaling.units import counted

_POLL_S = 0.05
_LAST = 0.95
"""Part of the run within which something is killed: what dies at the end may have ended already."""
_STARTS = 3
"""Starts of the driver after one kill, before the run counts as stuck: one is expected."""
_LEAVE_S = 60.0
"""Longest wait for a driver that was asked to leave where the drill ends before it, until it is
killed: assumption."""


def last_step(metrics: Path) -> Record | None:
    """The last record of training in a file that is being written."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
            lines, _ = split_lines(file.read())
    except FileNotFoundError:
        return None
    for line in reversed(lines):
        with contextlib.suppress(ValueError):  # the first may be cut
            record = decode_record(line)
            if names.TRAIN_SEQUENCES in record:
                return record
    return None


def schedule(
    options: DrillOptions, n_steps: int, n_sizes: int, rng: random.Random
) -> list[tuple[int, bool]]:
    """(step, whether it is a resize) of all that is done to the run, in order: a kill at random in
    each of equal parts of it."""
    last = max(2, int(_LAST * n_steps))
    n_resizes = options.resizes if n_sizes > 1 else 0
    resizes = [(max(1, n_steps * (i + 1) // (n_resizes + 1)), True) for i in range(n_resizes)]
    kills = [
        (1 + int((i + rng.random()) * last / options.kills), False) for i in range(options.kills)
    ]
    return sorted(kills + resizes)


class Drill:
    """words: of the run, as for scaling.run. sizes: numbers of workers that the run may be started
    with, ascending."""

    def __init__(
        self,
        options: DrillOptions,
        words: Sequence[str],
        config: RunConfig,
        sizes: Sequence[int],
        directory: Path,
        seed: int,
        nodes: Nodes | None,
        say: Callable[[str], None],
    ) -> None:
        self._options, self._words, self._config, self._sizes = options, list(words), config, sizes
        self._directory, self._nodes, self._say = directory, nodes, say
        self._random = random.Random(seed)
        self._size = sizes[-1]

    def run_dir(self, name: str) -> RunDir:
        return RunDir(self._directory / name / f"{self._config.name}-{self._config.run_id}")

    @contextlib.contextmanager
    def _started(self, name: str, *more: str) -> Iterator[subprocess.Popen[bytes]]:
        """The run's driver; it is asked to leave where the drill ends before it."""
        command = [
            sys.executable,
            "-m",
            "scaling.run",
            *self._words,
            f"run.root={self._directory / name}",
            *more,
        ]
        environment = os.environ | (self._nodes.environment if self._nodes else {})
        with (self._directory / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            _end(process)

    def unbroken(self) -> RunDir:
        """Train once without a kill. Raises LaunchError where that fails."""
        with self._started("unbroken") as process:
            code = self._watch("unbroken", process, [], Outcome())
        if code:
            raise self._failed("unbroken", f"ended with exit code {code}")
        return self.run_dir("unbroken")

    def broken(self, n_steps: int, hours_between_failures: float) -> Outcome:
        """Train with kills. Raises LaunchError where the run does not continue after one."""
        own = any(word.startswith("cluster.hours_between_failures=") for word in self._words)
        more = [] if own else [f"cluster.hours_between_failures={hours_between_failures}"]
        acts, outcome, code = (
            schedule(self._options, n_steps, len(self._sizes), self._random),
            Outcome(),
            None,
        )
        while code != 0:
            size = [f"cluster.devices_per_node={self._size}"] if outcome.resizes else []
            outcome.starts, outcome.starts_since = outcome.starts + 1, outcome.starts_since + 1
            with self._started("broken", *more, *size) as process:
                code = self._watch("broken", process, acts, outcome)
            if code:
                self._say(f"the driver ended with {code}; the same command again")
            if code and (
                code == EXIT_CONFIG or not outcome.pending or outcome.starts_since > _STARTS
            ):
                raise self._failed("broken", f"ended with exit code {code}")
        return outcome

    def _watch(
        self,
        name: str,
        process: subprocess.Popen[bytes],
        acts: list[tuple[int, bool]],
        outcome: Outcome,
    ) -> int:
        """Do what is due until the driver ends; its exit code. Raises LaunchError where no step is
        made for too long."""
        changed_s, seen, metrics = time.monotonic(), None, self.run_dir(name).metrics
        while (code := process.poll()) is None:
            record = last_step(metrics)
            place = record and (record[names.RUN_RESTARTS], record[names.STEP])
            if record is not None and place != seen:
                changed_s, seen = time.monotonic(), place
                if outcome.saw(record, time.time()):
                    self._mend()
            if (
                record is not None
                and acts
                and record[names.STEP] >= acts[0][0]
                and not outcome.pending
            ):
                _, resizes = acts.pop(0)
                outcome.add(
                    self._resize(process, record) if resizes else self._kill(process, record)
                )
            if time.monotonic() - changed_s > self._options.timeout_s:
                process.kill()
                raise self._failed(name, f"made no step for {self._options.timeout_s:.0f} s")
            time.sleep(_POLL_S)
        if (record := last_step(metrics)) is not None:
            outcome.saw(record, time.time())
        return code

    def _resize(self, process: subprocess.Popen[bytes], record: Record) -> Kill:
        """Have it write a checkpoint and leave; the next start is with another number of workers.

        A run that ends by itself in that moment is not resized: nobody misses anything.
        """
        before, at_s = self._size, time.time()
        after = self._random.choice([size for size in self._sizes if size != before])
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(self._options.timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            raise self._failed(
                "broken", f"did not end for {self._options.timeout_s:.0f} s after SIGTERM"
            ) from None
        record = last_step(self.run_dir("broken").metrics) or record
        if code == EXIT_FINISHED:
            self._say(f"step {record[names.STEP]:.0f}: the run ended before it could be stopped")
            return kill_at(RESIZE, record, at_s)
        if code != EXIT_STOPPED:
            raise self._failed(
                "broken", f"ended with exit code {code}, and not {EXIT_STOPPED}, after SIGTERM"
            )
        self._size = after
        self._say(
            f"step {record[names.STEP]:.0f}: stopped, to continue with "
            f"{counted(self._size, 'worker')} instead of {before}"
        )
        return kill_at(RESIZE, record, at_s)

    def _kill(self, process: subprocess.Popen[bytes], record: Record) -> Kill:
        """One process of a kind drawn from those that there are."""
        found = self._victims(process)
        kind = self._random.choice(sorted(found))
        pid = self._random.choice(sorted(found[kind]))
        kill = kill_at(kind, record, time.time())
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        self._say(f"step {kill.step}: killed the {kind} (pid {pid})")
        return kill

    def _victims(self, process: subprocess.Popen[bytes]) -> dict[str, list[int]]:
        roots = [process.pid] if self._nodes is None else self._nodes.roots
        below = {root: by_kind(root) for root in roots}
        found: dict[str, list[int]] = {DRIVER: [process.pid]}
        for kinds in below.values():
            for kind, pids in kinds.items():
                found.setdefault(kind, []).extend(pids)
        # a machine without work is not missed, and the last one not to be done without
        if self._nodes is not None:
            busy = [
                below[root][NODE]
                for root in self._nodes.living
                if {WORKER, NODE} <= below[root].keys()
            ]
            found[NODE] = (
                [pid for pids in busy for pid in pids] if len(self._nodes.living) > 1 else []
            )
        return {kind: found[kind] for kind in self._options.kinds if found.get(kind)} or {
            DRIVER: found[DRIVER]
        }

    def _mend(self) -> None:
        """Bring machines back that were lost."""
        if self._nodes is not None:
            for _ in range(self._options.nodes - len(self._nodes.living)):
                self._nodes.add()

    def _failed(self, name: str, what: str) -> LaunchError:
        log = self._directory / f"{name}.log"
        words = log.read_text(errors="replace").splitlines()[-3:]
        return LaunchError(
            f"the {name} run {what}; its last words: {' '.join(' '.join(words).split())!r}",
            fix=f"All are in {log}.",
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process by SIGTERM, or by SIGKILL where that takes too long or the drill is interrupted
    once more."""
    if process.poll() is None:
        process.terminate()
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_LEAVE_S)
    finally:
        process.kill()
        process.wait()
