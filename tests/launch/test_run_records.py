"""Runs whose numbers, records or checkpoints go wrong: they end with a clear word, and the same
command continues."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from scaling.channel.base import LocalChannel
from scaling.checkpoint import writer as writing
from scaling.checkpoint.store import committed
from scaling.composition.compose import compose
from scaling.config.run_config import RunConfig
from scaling.data.prepare.cached import ensure_corpus
from scaling.engine.base import Engine, Limits, StepResult
from scaling.errors import DivergedError
from scaling.launch.run import drive
from scaling.metrics.record import read_metrics
from scaling.parallel.grid import Ranks
from scaling.planner.machines.detect import resolve_cluster
from scaling.planner.run_plan import make_plan
from scaling.runs.directory import RunDir
from scaling.worker import rank as worker
from scaling.worker.spec import WorkerSpec
from tests.support.runs import ONE_WORKER, TINY, write_text

N_STEPS = 12
Command = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    root = tmp_path_factory.mktemp("records")
    return write_text(root / "text"), str(root / "cache")


@pytest.fixture
def command(place: tuple[str, str], tmp_path: Path) -> Command:
    """The configuration of a run of a dozen steps under `tmp_path`."""
    text, cache = place

    def made(*overrides: str, n_steps: int = N_STEPS) -> RunConfig:
        own = (f"data.path='{text}'", f"data.cache_dir={cache}", f"run.root={tmp_path / 'runs'}")
        short = (
            f"train.n_tokens={n_steps * 512}",
            "schedule.warmup_tokens=512",
            "checkpoint.every_steps=4",
        )
        return resolve_cluster(
            compose([*TINY, *ONE_WORKER, *own, *short, "train.eval_sequences=8", *overrides])
        )

    return made


@pytest.fixture(scope="module")
def finished(place: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that has come to its end, to be copied."""
    text, cache = place
    root = tmp_path_factory.mktemp("finished")
    own = (
        f"data.path='{text}'",
        f"data.cache_dir={cache}",
        f"run.root={root}",
        "train.eval_sequences=8",
    )
    short = (
        f"train.n_tokens={N_STEPS * 512}",
        "schedule.warmup_tokens=512",
        "checkpoint.every_steps=4",
    )
    assert drive(compose([*TINY, *ONE_WORKER, *own, *short])) == 0
    return next(path.parent for path in root.glob("*/config.yaml"))


def copied(finished: Path, config: RunConfig) -> RunDir:
    run_dir = RunDir.for_config(config)
    assert run_dir.path.name == finished.name
    shutil.copytree(finished, run_dir.path)
    return run_dir


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed, on one line."""
    return " ".join(capsys.readouterr().out.split())


def kinds(run_dir: RunDir) -> list[str]:
    return [event["kind"] for event in run_dir.read_events()]


# Numbers that are not finite.


class Spoiled:
    """An engine that says of some of its steps, counted from 1, that their loss is NaN, and leaves
    their updates out."""

    def __init__(self, engine: Engine, bad: Sequence[int]) -> None:
        self._engine, self._bad, self._n_steps = engine, bad, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def step(self, micro_batches: Any, lr: float, limits: Limits | None = None) -> StepResult:
        self._n_steps += 1
        if self._n_steps not in self._bad:
            return self._engine.step(micro_batches, lr, limits)
        found = self._engine.step(micro_batches, lr, Limits(loss=-1.0, grad_norm=-1.0))
        return replace(found, loss=torch.tensor(math.nan))


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    build = worker.build_engine
    return lambda *bad: monkeypatch.setattr(
        worker, "build_engine", lambda *args: Spoiled(build(*args), bad)
    )


def strict(content: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(content, parse_constant=refuse)


def test_a_loss_that_is_not_finite_at_the_end_ends_no_run(
    command: Command, spoil: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(11)
    config = command("train.log_every=10", "checkpoint.every_steps=11")
    assert drive(config) == 0
    run_dir = RunDir.for_config(config)
    summary = run_dir.read_summary()
    assert summary is not None
    assert (summary["train_loss"], summary["not_finite"], summary["skipped_steps"]) == (
        None,
        {"train_loss": "NaN"},
        1,
    )
    assert summary["since_command_s"] == pytest.approx(sum(summary["seconds"].values()), abs=0.01)
    assert summary["wall_s"] <= summary["since_command_s"]
    assert math.isfinite(summary["val_loss"])
    assert "left out 1 of 12 updates" in shown(capsys)
    texts = [
        path.read_text() for path in run_dir.path.rglob("*.json") if path.name != "tokenizer.json"
    ]
    texts += [
        line for path in run_dir.path.glob("*.jsonl") for line in path.read_text().splitlines()
    ]
    assert sum('"NaN"' in text for text in texts) == 3, (
        "the last record, the checkpoint of step 11 and the summary"
    )
    assert [strict(text) for text in texts]
    assert drive(config) == 0
    assert "training loss not finite (NaN) in the last interval" in shown(capsys)


@pytest.mark.parametrize(
    ("lr", "n_steps", "what"),
    [
        ("1e30", 40, "in a row"),
        ("1e30", 6, "5 of all 6 updates were left out"),
        ("1e308", 6, "held-out loss after the last step, 6"),
    ],
)
def test_a_learning_rate_beyond_all_bounds_fails_clearly_each_time(
    command: Command, lr: str, n_steps: int, what: str
) -> None:
    given = command(n_steps=n_steps)
    # no command takes such a rate, and the record of an earlier version may hold it
    config = given.model_copy(update={"optim": given.optim.model_copy(update={"lr": float(lr)})})
    for _ in range(2):
        with pytest.raises(DivergedError, match=what) as caught:
            drive(config)
        assert caught.value.exit_code == 1
        assert "smaller optim.lr" in str(caught.value)
        run_dir = RunDir.for_config(config)
        assert run_dir.state() == "failed"
        assert run_dir.read_summary() is None
    if n_steps == 40:
        assert read_metrics(run_dir.metrics)[-1]["step"] < 20
        assert "train.max_skips=10" in str(caught.value)


# Records that have lost something.


def test_a_gap_in_the_record_is_told_and_noted(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    config = command()
    run_dir = RunDir.for_config(config).create()
    spec = WorkerSpec(
        config=config,
        plan=make_plan(config),
        run_dir=str(run_dir.path),
        corpus_dir=str(ensure_corpus(config.data, config.tokenizer)),
        until_step=8,
    )
    worker.run_worker(spec, Ranks(0, 1, 0), LocalChannel(), rendezvous="")
    lines = run_dir.metrics.read_text().splitlines(keepends=True)
    run_dir.metrics.write_text("".join([lines[0], *lines[2:4]]))
    assert drive(config) == 0
    events = [event for event in run_dir.read_events() if event["kind"] == "record_gap"]
    gaps = [(event["step"], event["first_step"], event["last_step"]) for event in events]
    assert gaps == [(8, 1, 3), (8, 5, 8)]
    text = shown(capsys)
    assert "metrics.jsonl lacks records within steps 1 to 3" in text
    assert "metrics.jsonl lacks the records of steps 5 to 8" in text
    assert "not recorded steps 1 to 3, steps 5 to 8" in text
    summary = run_dir.read_summary()
    assert summary is not None
    assert summary["record_gaps"] == [[1, 3], [5, 8]]


def test_a_finished_run_without_its_record_is_evaluated_again(
    command: Command, finished: Path
) -> None:
    config = command()
    run_dir = copied(finished, config)
    before = run_dir.read_summary()
    assert before is not None
    run_dir.metrics.unlink()
    (run_dir.path / "summary.json").unlink()
    assert drive(config) == 0
    summary = run_dir.read_summary()
    assert summary is not None
    assert (summary["val_loss"], summary["train_loss"]) == (before["val_loss"], None)
    assert summary["record_gaps"] == [[1, N_STEPS]]


def test_the_record_is_on_the_disk_before_a_checkpoint_is_committed(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    sync, commit = writing.sync, writing.commit
    monkeypatch.setattr(writing, "sync", lambda path: (order.append(path.name), sync(path)))
    monkeypatch.setattr(writing, "commit", lambda *args: (order.append("commit"), commit(*args)))
    assert drive(command(n_steps=4)) == 0
    assert order == ["metrics.jsonl", "commit"]


DAMAGE = {
    "provenance.json": '{"attempts": 3}',
    "progress.json": '{"workers": "w", "step": 3, "seconds": [1]}',
    "summary.json": "{}",
    "plan.json": "[" * 100_000,
    "events.jsonl": '{"kind": "start"}\n\x00\n{"kind": ["x"]}\n',
}
"""File -> content that is none, or for the events lines that are put before the others."""


def test_damaged_records_never_keep_a_run_from_going_on(
    command: Command, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = command()
    run_dir = copied(finished, config)
    before = run_dir.read_summary()
    events = run_dir.events.read_text()
    for name, content in DAMAGE.items():
        (run_dir.path / name).write_text(content + (events if name == "events.jsonl" else ""))
    assert drive(config) == 0
    text = shown(capsys)
    for name, content in DAMAGE.items():
        assert f"{name} is damaged" in text
        assert (run_dir.path / f"{name}.damaged").read_text().startswith(content)
    after = run_dir.read_summary()
    assert before is not None
    assert after is not None
    assert {name: after[name] for name in ("steps", "train_loss", "val_loss")} == {
        name: before[name] for name in ("steps", "train_loss", "val_loss")
    }
    assert run_dir.state() == "finished"
    assert drive(config) == 0
    assert "is damaged" not in shown(capsys)


# Checkpoints that cannot be removed.


def test_an_old_checkpoint_that_resists_is_told_once_and_training_goes_on(
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from scaling.checkpoint import store as checkpoint

    remove = checkpoint.remove

    def resisting(path: Path) -> None:
        if path.name == "step-00000001":
            raise PermissionError(1, "Operation not permitted", str(path))
        remove(path)

    monkeypatch.setattr(checkpoint, "remove", resisting)
    config = command("checkpoint.every_steps=1", "checkpoint.keep_last=2", n_steps=8)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run_dir = RunDir.for_config(config).create()
    (run_dir.checkpoints / ".step-00000009.0badcafe.partial").symlink_to(elsewhere)
    assert drive(config) == 0
    assert [step for step, _ in committed(run_dir.checkpoints)] == [1, 7, 8]
    assert kinds(run_dir).count("not_removed") == 1
    assert "step-00000001 cannot be removed (Operation not permitted); the run continues." in shown(
        capsys
    )
    assert elsewhere.is_dir()
    assert not list(run_dir.checkpoints.glob(".*partial"))
