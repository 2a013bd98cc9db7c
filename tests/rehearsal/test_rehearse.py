"""The drill: what it does to a run and when, what it finds in two records, and what it answers."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling import rehearse
from scaling.errors import LaunchError
from scaling.metrics import names
from scaling.metrics.record import Record
from scaling.rehearsal import course
from scaling.rehearsal.cluster import Nodes
from scaling.rehearsal.compare import Comparison, compare
from scaling.rehearsal.drill import Drill, last_step, schedule
from scaling.rehearsal.options import DrillOptions, split_words
from scaling.rehearsal.outcome import RESIZE, Kill, Outcome
from scaling.rehearsal.processes import CONTROLLER, NODE, WORKER, by_kind, kind_of
from scaling.rehearsal.report import TOLERANCE, Report, allowed_difference, lost_by_kind
from scaling.runs.directory import RunDir
from tests.support.configs import composed
from tests.support.runs import ONE_WORKER, TINY, TWO_WORKERS, Workplace

G = 4
"""Global batch of the records below."""


def position(step: int) -> Record:
    return dict.fromkeys(names.POSITION, 1.0) | {names.STEP: step}


def record(
    step: int, *, loss: float = 2.0, sequences: int | None = None, restarts: int = 0
) -> Record:
    return position(step) | {
        names.TRAIN_LOSS: loss + 1 / (step + 1),
        names.TRAIN_GRAD_NORM: 0.5,
        names.RUN_WORLD_SIZE: 2,
        names.RUN_RESTARTS: restarts,
        names.TRAIN_SEQUENCES: G * step if sequences is None else sequences,
    }


def val(step: int, loss: float = 3.0) -> Record:
    return position(step) | {names.VAL_LOSS: loss}


def run_of(n: int) -> list[Record]:
    return [record(step) for step in range(1, n + 1)]


# The comparison.


def test_a_run_is_like_itself() -> None:
    whole = [*run_of(8), val(8)]
    assert compare(whole, [dict(r) for r in whole], G) == Comparison(
        8, 0, 0, 0, 0, 0, True, 0.0, 0.0, 0.0
    )


@given(first=st.integers(3, 18), n=st.integers(1, 5))
def test_sequences_left_out_and_read_twice_are_counted_one_by_one(first: int, n: int) -> None:
    """Whether steps are missing, or are there and were made from other sequences."""
    whole = run_of(20)
    shifted = [record(s, sequences=G * s + (n if s >= first else 0)) for s in range(1, 21)]
    assert (
        compare(whole, shifted, G).sequences_skipped,
        compare(whole, shifted, G).sequences_repeated,
    ) == (n, 0)
    again = [record(s, sequences=G * s - (n if s >= first else 0)) for s in range(1, 21)]
    assert compare(whole, again, G).sequences_repeated == n
    gone = [r for r in whole if not first <= r[names.STEP] < first + n]
    found = compare(whole, gone, G)
    kept_after = first + n <= 20
    assert found.steps_missing == min(n, 21 - first)
    assert found.sequences_skipped == (G * n if kept_after else 0)
    assert not found.identical


def test_a_step_that_is_there_twice_is_counted() -> None:
    broken = [*run_of(5), *[record(s) for s in range(4, 9)]]
    found = compare(run_of(8), broken, G)
    assert (found.steps_repeated, found.sequences_repeated, found.sequences_skipped) == (
        2,
        2 * G,
        0,
    )


@pytest.mark.parametrize("name", [names.TRAIN_LOSS, names.TRAIN_GRAD_NORM, names.VAL_LOSS])
def test_the_last_bit_of_one_number_is_a_difference(name: str) -> None:
    whole = [*run_of(8), val(8)]
    broken = [dict(r) for r in whole]
    (last,) = [r for r in broken if name in r][-1:]
    last[name] += 2**-51
    found = compare(whole, broken, G)
    assert not found.identical
    assert found.max_difference == (0 if name == names.TRAIN_GRAD_NORM else 2**-51)


def test_an_evaluation_that_is_missing_is_a_difference() -> None:
    found = compare([*run_of(8), val(8)], run_of(8), G)
    assert (found.identical, found.numbers_unmatched) == (False, 1)
    assert compare(run_of(8), [*run_of(8), val(8)], G).numbers_unmatched == 1


@pytest.mark.parametrize(
    ("unbroken", "broken", "relative"),
    [
        ([2.0, 2.0], [2.0002, math.nan], math.inf),
        ([2.0, math.nan], [2.0, 2.0], math.inf),
        ([2.0, math.inf], [2.0, -math.inf], math.inf),
        ([math.nan, math.inf, 4.0], [math.nan, math.inf, 5.0], 0.25),
        ([0.0, 2.0], [0.0, 2.0], 0.0),
        ([0.0, 2.0], [1e-9, 2.0], math.inf),
    ],
)
@pytest.mark.parametrize("name", [names.TRAIN_LOSS, names.TRAIN_GRAD_NORM])
def test_numbers_that_are_not_finite_or_nothing(
    name: str, unbroken: list[float], broken: list[float], relative: float
) -> None:
    before, after = (
        [record(i) | {name: x} for i, x in enumerate(numbers, 1)] for numbers in (unbroken, broken)
    )
    found = compare(before, after, G)
    assert (found.max_relative if name == names.TRAIN_LOSS else found.max_norm_relative) == relative
    assert found.identical == (relative == 0)


@pytest.mark.parametrize(
    ("name", "value", "passed"),
    [
        (names.TRAIN_LOSS, 2.0 * (1 + 1e-3), True),
        (names.TRAIN_LOSS, 2.0 * (1 + 3e-3), False),
        (names.TRAIN_LOSS, math.nan, False),
        (names.TRAIN_GRAD_NORM, 0.5 * (1 + 9e-3), True),
        (names.TRAIN_GRAD_NORM, 0.5 * (1 + 11e-3), False),
        (names.TRAIN_GRAD_NORM, 99.0, False),
        (names.VAL_LOSS, None, False),
    ],
)
def test_the_verdict_where_rounding_is_allowed(
    name: str, value: float | None, passed: bool
) -> None:
    unbroken = [r | {names.TRAIN_LOSS: 2.0} for r in run_of(8)]
    unbroken[3] |= {names.VAL_LOSS: 3.0}
    broken = [dict(r) for r in unbroken]
    if value is None:
        del broken[3][name]
    else:
        broken[3][name] = value
    report = Report(
        command=[],
        seed=1,
        n_kills_wanted=0,
        kills=[],
        resizes=[],
        starts=1,
        world_sizes=[2, 1],
        comparison=compare(unbroken, broken, G),
        allowed=TOLERANCE["fp32"],
        seconds={},
        goodput=None,
        goodput_unbroken=None,
    )
    assert report.passed == passed


# When and what.


@given(
    kills=st.integers(0, 60),
    resizes=st.integers(0, 5),
    sizes=st.integers(1, 4),
    seed=st.integers(0, 2**31),
)
def test_the_schedule_is_the_seeds(kills: int, resizes: int, sizes: int, seed: int) -> None:
    options = DrillOptions(kills=kills, resizes=resizes)
    acts = schedule(options, 100, sizes, random.Random(seed))
    assert acts == sorted(acts) == schedule(options, 100, sizes, random.Random(seed))
    assert sum(not resize for _, resize in acts) == kills
    assert sum(resize for _, resize in acts) == (resizes if sizes > 1 else 0)
    assert all(1 <= step <= 95 for step, _ in acts), (
        "what dies at the very end may have ended already"
    )
    for part, step in enumerate(step for step, resize in acts if not resize):
        assert part * 95 / kills <= step <= (part + 1) * 95 / kills + 1, "they do not crowd"


def test_what_a_kill_costs_is_the_time_without_a_new_step() -> None:
    outcome = Outcome()
    assert not outcome.saw(record(10), 100.0)
    kill = Kill("worker", 10, 100.5, 2, restarts=0)
    outcome.add(kill)
    assert not outcome.saw(record(11), 101.0), "made before it was dead"
    assert not outcome.saw(record(9, restarts=1), 110.0), "what is done again is not new"
    assert not outcome.saw(record(11, restarts=1), 111.0)
    assert outcome.saw(record(12, restarts=1), 111.5)
    assert (kill.lost_s, outcome.pending) == (10.5, None)
    outcome.add(Kill(RESIZE, 12, 112.0, 2, restarts=1))
    assert (len(outcome.kills), len(outcome.resizes)) == (1, 1), "a resize is no kill"


def test_costs_by_kind() -> None:
    kills = [
        Kill(kind, 1, 0.0, 2, 0, lost)
        for kind, lost in (("worker", 4.0), ("driver", 9.0), ("worker", 8.0), ("worker", None))
    ]
    assert lost_by_kind(kills) == {
        "driver": {"times": 1, "not_missed": 0, "median_s": 9.0, "max_s": 9.0},
        "worker": {"times": 3, "not_missed": 1, "median_s": 6.0, "max_s": 8.0},
        "all": {"times": 4, "not_missed": 1, "median_s": 8.0, "max_s": 9.0},
    }


def test_the_last_step_of_a_file_that_is_being_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert last_step(path) is None
    lines = [json.dumps(r) for r in (record(1), record(2), val(2))]
    path.write_text("\n".join(lines) + '\n{"step": 3, "train/sequ')
    assert last_step(path) == record(2)


@pytest.mark.parametrize(
    ("title", "kind"),
    [
        ("ray::RayTrainWorker.execute", WORKER),
        ("ray::TrainController", CONTROLLER),
        ("/x/raylet", NODE),
        ("ray::IDLE", None),
    ],
)
def test_processes_are_known_by_their_names(title: str, kind: str | None) -> None:
    process = subprocess.Popen([title, "30"], executable=shutil.which("sleep"))
    try:
        while not Path(f"/proc/{process.pid}/cmdline").read_bytes():
            pass  # it is just being started
        assert kind_of(process.pid) == kind
        mine = {pid for pids in by_kind(os.getpid()).values() for pid in pids}
        assert (process.pid in mine) == (kind is not None)
    finally:
        process.kill()
        process.wait()


# What is refused, and what is answered.


def test_words_go_where_they_belong() -> None:
    words = ["model=gpt_nano", "kills=3", "run.name=kills", "seed=1", "train.seed=2", "nodes=0"]
    assert split_words(words) == (
        ["kills=3", "seed=1", "nodes=0"],
        ["model=gpt_nano", "run.name=kills", "train.seed=2"],
    )


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["kills=-1"], "kills=-1"),
        (["kills=many"], "kills=many"),
        (["victims=worker,drivers"], "'drivers' is none of worker, controller, node, driver"),
        (["nodes=1"], "nodes=1 leaves nothing when it is killed"),
        (["timeout_s=0"], "timeout_s=0"),
        (["model=gpt_nan"], "gpt_nan"),
        (["kils=3"], "kils"),
        (["train.n_tokens=20_000", "kills=30"], "too short for 30 kills and 2 resizes"),
        (["cluster=8xH100", "nodes=2"], "nodes=2 imitates machines of CPU workers"),
        (["dry_run=true"], "dry_run=true"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    words: list[str],
    what: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    described = [] if any(word.startswith("cluster=") for word in words) else list(TWO_WORKERS)
    assert rehearse.main([*described, *words]) == 2
    assert what in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


def test_another_drills_directory_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rehearse.main([*TWO_WORKERS, f"directory={tmp_path}"]) == 2
    assert "exists already" in capsys.readouterr().err


def test_help_names_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert rehearse.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name}=" in shown for name in DrillOptions.model_fields)


def test_what_may_differ() -> None:
    config = composed("precision=fp32")
    assert allowed_difference(config, [2, 2, 2]) == 0
    assert allowed_difference(config, [2, 1, 2]) > 0


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda records: records, 0),
        (
            lambda records: [
                r | ({names.TRAIN_LOSS: 9.0} if r[names.STEP] == 7 else {}) for r in records
            ],
            1,
        ),
        (lambda records: records[:-1], 1),
        (lambda records: [*records[:4], *records[2:]], 1),
        (
            lambda records: [
                r | {names.TRAIN_SEQUENCES: r[names.TRAIN_SEQUENCES] + 1} for r in records
            ],
            1,
        ),
    ],
    ids=["alike", "another loss", "a step missing", "steps twice", "a sequence skipped"],
)
def test_the_exit_code_is_the_verdict(
    spoil: Callable[[list[Record]], list[Record]],
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Played(course.Drill):
        def _write(self, name: str, records: Sequence[Record]) -> RunDir:
            run_dir = self.run_dir(name)
            run_dir.path.mkdir(parents=True)
            run_dir.metrics.write_text("".join(json.dumps(r) + "\n" for r in records))
            run_dir.event("start", step=0, world_size=2, workers="w")
            return run_dir

        def _records(self) -> list[Record]:
            batch = self._config.train.global_batch_size
            return [record(s, sequences=s * batch) for s in range(1, 21)]

        def unbroken(self) -> RunDir:
            return self._write("unbroken", self._records())

        def broken(self, *_: Any) -> Outcome:
            self._write("broken", spoil(self._records()))
            return Outcome(kills=[Kill("worker", 3, 0.0, 2, 0, 5.0)])

    monkeypatch.setattr(course, "Drill", Played)
    directory = tmp_path / "drill"
    assert rehearse.main([*TWO_WORKERS, "kills=1", f"directory={directory}"]) == code
    report = json.loads((directory / "report.json").read_text())
    assert report["passed"] == (code == 0)
    assert report["lost"]["worker"]["median_s"] == 5.0


def _python_is(monkeypatch: pytest.MonkeyPatch, directory: Path, script: str) -> None:
    """What the drill starts is a script of the shell instead."""
    program = directory / "program"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))


def test_an_interrupted_drill_leaves_no_run_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Interrupted(course.Drill):
        def _watch(self, name: str, process: subprocess.Popen[bytes], *_: Any) -> int:
            started.append(process)
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("the signal was not taken")

    monkeypatch.setattr(course, "Drill", Interrupted)
    _python_is(monkeypatch, tmp_path, "exec sleep 60")
    before = signal.getsignal(signal.SIGTERM)
    assert rehearse.main([*TWO_WORKERS, "kills=1", f"directory={tmp_path / 'drill'}"]) == 75
    assert started[0].poll() == -signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before


class Ignoring(Drill):
    """Left while its run, which takes no notice of SIGTERM, continues."""

    def _watch(self, name: str, process: subprocess.Popen[bytes], *_: Any) -> int:
        self.process = process
        while not (self._directory / "ready").exists():
            assert process.poll() is None
        raise KeyboardInterrupt


def _small(kind: type[Drill], directory: Path) -> Any:
    return kind(DrillOptions(), [], composed(), [1, 2], directory, 0, None, lambda _: None)


def test_a_run_that_does_not_leave_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _python_is(monkeypatch, tmp_path, f"trap '' TERM\ntouch {tmp_path}/ready\nexec sleep 20")
    monkeypatch.setattr("scaling.rehearsal.drill._LEAVE_S", 0.05)
    drill = _small(Ignoring, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        drill.unbroken()
    assert drill.process.poll() == -signal.SIGKILL


def test_a_resize_that_comes_too_late_is_not_missed(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as process:
        pass
    drill = _small(Drill, tmp_path)
    kill = drill._resize(process, record(95))
    assert (kill.kind, kill.step, kill.lost_s) == (RESIZE, 95, None)
    with subprocess.Popen(["false"]) as process:
        pass
    (tmp_path / "broken.log").touch()
    with pytest.raises(LaunchError, match="ended with exit code 1, and not 75"):
        drill._resize(process, record(95))


@pytest.mark.parametrize("n_before", [0, 1], ids=["the head", "a node"])
def test_an_interrupt_while_machines_start_leaves_none(
    n_before: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _python_is(monkeypatch, tmp_path, "exec sleep 20")
    nodes, started = Nodes(2, tmp_path, 1), []

    def interrupted(newest: subprocess.Popen[bytes], n_started: int) -> None:
        started.append(newest)
        if n_started > n_before:
            raise KeyboardInterrupt

    monkeypatch.setattr(nodes, "_wait", interrupted)
    try:
        with pytest.raises(KeyboardInterrupt), nodes:
            raise AssertionError("the interrupt was not taken")
        assert [process.poll() for process in started] == [-signal.SIGKILL] * (1 + n_before)
    finally:
        for process in started:
            process.kill()
            process.wait()


def _drill(workplace: Workplace, directory: Path, *words: str) -> tuple[int, dict[str, Any]]:
    code = rehearse.main(
        [
            *TINY,
            f"data.path='{workplace.text}'",
            f"data.cache_dir={workplace.root / 'cache'}",
            f"directory={directory}",
            *words,
        ]
    )
    return code, json.loads((directory / "report.json").read_text())


@pytest.mark.timeout(900)  # several starts of a run, on a machine that may be busy
def test_a_drill_of_one_worker(workplace: Workplace, tmp_path: Path) -> None:
    code, report = _drill(
        workplace, tmp_path / "drill", *ONE_WORKER, "train.n_tokens=150_000", "kills=1"
    )
    found = report["comparison"]
    assert (code, report["passed"], found["identical"]) == (0, True, True)
    assert (found["sequences_repeated"], found["sequences_skipped"], found["max_difference"]) == (
        0,
        0,
        0,
    )
    assert [kill["kind"] for kill in report["kills"]] == ["driver"]
    assert (report["starts"], report["world_sizes"]) == (2, [1, 1])
    assert all(kill["lost_s"] > 0 for kill in report["kills"])


@pytest.mark.slow
def test_a_drill_of_workers_that_grow_fewer_and_more(workplace: Workplace, tmp_path: Path) -> None:
    words = (*TWO_WORKERS, "train.n_tokens=300_000", "kills=6", "resizes=2", "seed=3")
    code, report = _drill(workplace, tmp_path / "drill", *words)
    assert code == 0
    assert len(report["kills"]) == 6
    assert set(report["world_sizes"]) == {1, 2}


@pytest.mark.slow
def test_a_drill_of_machines_that_go(workplace: Workplace, tmp_path: Path) -> None:
    words = ("train.n_tokens=600_000", "kills=3", "victims=node", "nodes=3", "seed=3")
    code, report = _drill(workplace, tmp_path / "drill", *words)
    assert code == 0
    assert len(report["kills"]) == 3
