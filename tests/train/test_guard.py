"""Losses that are not finite or stand out: the update is left out, or the run goes back and on
without the sequences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from scaling.channel.base import LocalChannel
from scaling.checkpoint.fence import Fence
from scaling.checkpoint.state import TrainState
from scaling.checkpoint.store import FENCE
from scaling.composition.compose import compose
from scaling.config.run_config import RunConfig
from scaling.data.prepare.cached import ensure_corpus
from scaling.engine.base import Engine, Limits, StepResult
from scaling.errors import DivergedError, SupersededError
from scaling.metrics.record import read_metrics
from scaling.parallel.grid import Ranks
from scaling.planner.machines.detect import resolve_cluster
from scaling.planner.run_plan import make_plan
from scaling.runs.directory import RunDir
from scaling.train import steps
from scaling.train.guard import Guard, RollBack, check_left_out
from scaling.train.steps import Uncondemned
from scaling.worker import rank as worker
from scaling.worker.spec import WorkerSpec
from tests.support.runs import COMPARED, TINY, write_text

G, N_STEPS = 8, 40
BAD = 24 * G
"""First sequence of the bad global batch, which is step 25's."""


def settings(*overrides: str) -> RunConfig:
    return resolve_cluster(compose(["layout=manual", "layout.dp=1", *overrides]))


# One step after the other.


def told(*overrides: str) -> tuple[Guard, list[tuple[str, dict[str, Any]]]]:
    events: list[tuple[str, dict[str, Any]]] = []
    guard = Guard(
        settings(f"train.global_batch_size={G}", *overrides).train,
        lambda kind, **fields: events.append((kind, fields)),
    )
    return guard, events


def result(loss: float, grad_norm: float = 1.0) -> StepResult:
    return StepResult(
        torch.tensor(loss),
        torch.tensor(grad_norm),
        torch.tensor(float(not math.isfinite(loss + grad_norm))),
    )


def walk(guard: Guard, losses: Sequence[float], state: TrainState | None = None) -> TrainState:
    state = state or TrainState()
    for loss in losses:
        state = state.advance(next_sequence=state.next_sequence + G, n_tokens=512)
        state = guard.after_step(state, result(loss))
    return state


SPIKES = ("train.spike_window=4", "train.spike_sigmas=3")


def test_what_is_left_out_is_told_with_its_sequences() -> None:
    guard, events = told()
    state = walk(guard, [3.0, math.nan, 2.9])
    assert events == [], "nobody waits for the device before there is something to write"
    guard.settle(state)
    assert events == [
        ("step_skipped", {"step": 2, "sequences": [8, 16], "reason": "its loss is nan"})
    ]
    assert guard.limits(state) is None


def test_a_spike_is_judged_by_the_steps_before_that_were_none() -> None:
    guard, events = told("train.on_spike=skip", *SPIKES)
    state = walk(guard, [9.0, 3.0, 3.2, 3.1])
    assert guard.limits(state) is not None, "the window is full"
    assert events == []
    state = walk(guard, [2.9, 3.0, 60.0], state)
    ((kind, fields),) = events
    assert (kind, fields["step"], fields["sequences"]) == ("step_skipped", 7, [48, 56])
    assert fields["reason"].startswith(
        "its loss of 60 is beyond 3.38541, 3 standard deviations above the 4 steps before"
    )
    assert state.recent_losses == pytest.approx((3.2, 3.1, 2.9, 3.0)), (
        "the spike itself is not what the next is judged by"
    )
    assert guard.limits(state) == Limits(
        loss=pytest.approx(3.38541, abs=1e-5), grad_norm=pytest.approx(1.03)
    )
    walk(guard, [3.05], state)
    assert len(events) == 1


def test_a_gradient_norm_can_stand_out_alone() -> None:
    guard, _ = told("train.on_spike=rollback", *SPIKES)
    state = walk(guard, [3.0] * 4).advance(next_sequence=5 * G, n_tokens=512)
    with pytest.raises(RollBack, match="step 5: its gradient norm of 7 is beyond") as caught:
        guard.after_step(state, result(3.0, grad_norm=7.0))
    assert caught.value.first_sequence == 32
    assert guard.limits(state) is None, "the engine leaves nothing out where the run goes back"


def test_a_ripple_of_a_calm_stretch_is_no_spike() -> None:
    guard, events = told("train.on_spike=fail", *SPIKES)
    walk(guard, [3.0] * 4 + [3.08])
    assert events == []
    with pytest.raises(
        DivergedError, match=r"step 5 on sequences 32 to 39 has been given up: its loss of 3\.2"
    ):
        walk(told("train.on_spike=fail", *SPIKES)[0], [3.0] * 4 + [3.2])


@pytest.mark.parametrize(("policy", "error"), [("rollback", RollBack), ("fail", DivergedError)])
def test_what_is_not_finite_is_judged_at_once(policy: str, error: type[Exception]) -> None:
    guard, _ = told(f"train.on_nonfinite={policy}")
    with pytest.raises(error, match="its loss is inf"):
        walk(guard, [3.0, math.inf])
    assert guard.rolls_back == (policy == "rollback")


def test_updates_left_out_in_a_row_are_bounded_over_restarts() -> None:
    guard, events = told("train.max_skips=2")
    state = guard.settle(walk(guard, [3.0, math.nan, math.nan, 2.9, math.nan, math.inf]))
    assert (len(events), state.skipped_in_a_row) == (4, 2)
    again, _ = told("train.max_skips=2")  # as after a restart from a checkpoint of this state
    with pytest.raises(
        DivergedError, match=r"last 3 steps were left out, up to step 7, and 2 in a row is the most"
    ) as caught:
        again.settle(walk(again, [math.nan], state))
    assert "train.max_skips=2" in str(caught.value)
    assert again.settle(walk(again, [2.8], state)).skipped_in_a_row == 0


def test_spikes_left_out_in_a_row_are_bounded_too() -> None:
    guard, _ = told("train.on_spike=skip", "train.max_skips=3", *SPIKES)
    with pytest.raises(DivergedError, match="up to step 8"):
        walk(guard, [3.0] * 4 + [60.0] * 4)


@pytest.mark.parametrize("max_skips", [1, 1000])
def test_a_run_whose_updates_are_mostly_left_out_has_diverged(max_skips: int) -> None:
    train = settings(f"train.max_skips={max_skips}", "train.on_spike=skip").train
    for n_steps, n_skipped in ((1, 1), (6, 4), (6, 6), (7, 4), (10_000, 5_001)):
        state = TrainState(step=n_steps, skipped_steps=n_skipped)
        with pytest.raises(DivergedError, match=f"{n_skipped} of all {n_steps} updates") as caught:
            check_left_out(train, state)
        assert "smaller optim.lr" in str(caught.value)
        assert "train.spike_sigmas" in str(caught.value)
        assert "max_skips" not in str(caught.value)
    for n_steps, n_skipped in ((1, 0), (6, 3), (10_000, 10)):
        check_left_out(train, TrainState(step=n_steps, skipped_steps=n_skipped))


def test_condemned_batches_are_read_and_dropped() -> None:
    class Loader:
        last_wait_s = 0.5

        def __iter__(self) -> Any:
            return iter([([], G * (number + 1)) for number in range(5)])

    batches = Uncondemned(Loader(), [8, 16], G)
    assert [(position, batches.last_wait_s) for _, position in batches] == [
        (8, 0.5),
        (32, 1.5),
        (40, 0.5),
    ]


# Whole runs of one worker in this process.


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    root = tmp_path_factory.mktemp("guard")
    return write_text(root / "text"), str(root / "cache")


Poison = Callable[[int], bool]
"""Whether the global batch that begins at a sequence is bad."""


PLACES: dict[int, int] = {}
"""Address of a sequence's tokens -> its number; micro-batches are views of the same memory."""


class PoisonedEngine:
    """An engine whose weights and loss some batches spoil."""

    def __init__(self, engine: Engine, poison: Poison, crash_at: int | None) -> None:
        self._engine, self._poison, self._crash_at = engine, poison, crash_at
        self.n_steps = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def step(self, micro_batches: Any, lr: float, limits: Limits | None = None) -> StepResult:
        self.n_steps += 1
        if self.n_steps == self._crash_at:
            raise KeyboardInterrupt
        if self._poison(PLACES[micro_batches[0].tokens_BT.data_ptr()]):
            found = self._engine.step(micro_batches, 1e3 * lr)
            return replace(found, loss=torch.tensor(torch.nan), skipped=torch.tensor(1.0))
        return self._engine.step(micro_batches, lr, limits)


@pytest.fixture
def train_in(corpus: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunDir]:
    text, cache = corpus
    build, make = worker.build_engine, steps.make_batch_for

    def train(
        directory: Path,
        *overrides: str,
        poison: Poison = lambda first: False,
        crash_at: int | None = None,
    ) -> RunDir:
        config = settings(
            *TINY,
            f"data.path='{text}'",
            f"data.cache_dir={cache}",
            f"train.n_tokens={N_STEPS * 512}",
            "train.eval_every=null",
            *overrides,
        )
        monkeypatch.setattr(
            worker, "build_engine", lambda *args: PoisonedEngine(build(*args), poison, crash_at)
        )
        monkeypatch.setattr(steps, "make_batch_for", lambda *args: _with_place(make(*args)))
        run_dir = RunDir(directory).create()
        spec = WorkerSpec(
            config=config,
            plan=make_plan(config),
            run_dir=str(run_dir.path),
            corpus_dir=str(ensure_corpus(config.data, config.tokenizer)),
        )
        worker.run_worker(spec, Ranks(0, 1, 0), LocalChannel(), rendezvous="")
        return run_dir

    return train


def _with_place(make_batch: Any) -> Any:
    """Record the address of each sequence, for the engine above."""

    def made(rows: Any, ks: Any) -> Any:
        batch = make_batch(rows, ks)
        PLACES.update({row.data_ptr(): int(k) for row, k in zip(batch.tokens_BT, ks, strict=True)})
        return batch

    return made


def curve(run_dir: RunDir) -> list[dict[str, float]]:
    return [
        {k: r[k] for k in ("step", "train/sequences", *COMPARED) if k in r}
        for r in read_metrics(run_dir.metrics)
    ]


def events_of(run_dir: RunDir, kind: str) -> list[dict[str, Any]]:
    return [event for event in run_dir.read_events() if event["kind"] == kind]


def without_the_batch(train_in: Callable[..., RunDir], directory: Path) -> list[dict[str, float]]:
    """The curve of a run that knows from the start which batch to leave out."""
    run_dir = RunDir(directory).create()
    run_dir.event("rolled_back", step=0, sequences=[BAD, BAD + G])
    return curve(train_in(directory))


def test_a_run_goes_back_and_ends_as_if_the_batch_had_never_been(
    train_in: Callable[..., RunDir], tmp_path: Path
) -> None:
    run_dir = train_in(
        tmp_path / "a", "train.on_nonfinite=rollback", poison=lambda first: first == BAD
    )
    ((event),) = events_of(run_dir, "rolled_back")
    assert {k: event[k] for k in ("step", "from_step", "sequences", "reason")} == {
        "step": 20,
        "from_step": 25,
        "sequences": [BAD, BAD + G],
        "reason": "its loss is nan",
    }
    found = curve(run_dir)
    assert found == without_the_batch(train_in, tmp_path / "b")
    position = {
        record["step"]: record["train/sequences"] for record in found if "train/sequences" in record
    }
    assert (position[24], position[25], position[N_STEPS]) == (24 * G, 26 * G, (N_STEPS + 1) * G)
    seconds = run_dir.seconds()
    assert seconds["recomputing"] > 0


def test_a_crash_after_going_back_does_not_bring_the_batch_again(
    train_in: Callable[..., RunDir], tmp_path: Path
) -> None:
    # three steps after going back, and five before the next checkpoint
    with pytest.raises(KeyboardInterrupt):
        train_in(
            tmp_path / "a",
            "train.on_nonfinite=rollback",
            poison=lambda first: first == BAD,
            crash_at=25 + 3,
        )
    run_dir = train_in(tmp_path / "a", "train.on_nonfinite=rollback")
    assert len(events_of(run_dir, "rolled_back")) == 1
    assert events_of(run_dir, "resume")[0]["step"] == 20
    assert curve(run_dir) == without_the_batch(train_in, tmp_path / "b")


def test_before_the_first_checkpoint_a_run_goes_back_to_its_beginning(
    train_in: Callable[..., RunDir], tmp_path: Path
) -> None:
    run_dir = train_in(
        tmp_path / "a",
        "train.on_nonfinite=rollback",
        "checkpoint.every_steps=null",
        "checkpoint.every=end",
        poison=lambda first: first == BAD,
    )
    assert events_of(run_dir, "rolled_back")[0]["step"] == 0
    assert curve(run_dir) == without_the_batch(train_in, tmp_path / "b")


def test_a_run_that_is_bad_everywhere_is_given_up(
    train_in: Callable[..., RunDir], tmp_path: Path
) -> None:
    with pytest.raises(
        DivergedError,
        match=r"step 25 on sequences 216 to 223 is bad too .* after 3 rollbacks to step 20",
    ):
        train_in(tmp_path, "train.on_nonfinite=rollback", poison=lambda first: first >= BAD)
    assert [event["sequences"][0] for event in events_of(RunDir(tmp_path), "rolled_back")] == [
        BAD,
        BAD + G,
        BAD + 2 * G,
    ]


def test_spikes_are_left_out_alike_in_a_run_that_was_interrupted(
    train_in: Callable[..., RunDir], tmp_path: Path
) -> None:
    policy = ("train.on_spike=skip", "train.spike_window=6", "train.spike_sigmas=0.7")
    whole = train_in(tmp_path / "a", *policy)
    skipped = [(event["step"], event["sequences"]) for event in events_of(whole, "step_skipped")]
    assert 2 <= len(skipped) <= N_STEPS // 2
    with pytest.raises(KeyboardInterrupt):
        train_in(tmp_path / "b", *policy, crash_at=max(step for step, _ in skipped))
    again = train_in(tmp_path / "b", *policy)
    assert curve(again) == curve(whole)
    assert sorted(
        {(e["step"], tuple(e["sequences"])) for e in events_of(again, "step_skipped")}
    ) == [(step, tuple(sequences)) for step, sequences in skipped]
    assert read_metrics(again.metrics)[-1]["step"] == N_STEPS
    assert max(r.get("train/skipped_steps", 0) for r in read_metrics(again.metrics)) == len(skipped)


def test_checkpoints_by_the_clock_change_nothing(
    train_in: Callable[..., RunDir], tmp_path: Path
) -> None:
    often = train_in(tmp_path / "a", "checkpoint.every_steps=null", "checkpoint.every_minutes=1e-5")
    never = train_in(tmp_path / "b", "checkpoint.every_steps=null", "checkpoint.every=end")
    assert len(events_of(often, "checkpoint_committed")) > 5
    assert len(events_of(never, "checkpoint_committed")) == 1
    assert curve(often) == curve(never)


def test_workers_whose_run_another_group_has_record_nothing_more(
    train_in: Callable[..., RunDir], tmp_path: Path
) -> None:
    run_dir = RunDir(tmp_path).create()

    def overtaken(first: int) -> bool:
        if first == 10 * G:
            Fence(run_dir.checkpoints / FENCE).take()
        return False

    with pytest.raises(SupersededError):
        train_in(tmp_path, poison=overtaken)
    assert [record["step"] for record in read_metrics(run_dir.metrics)] == list(range(1, 11))
    progress = run_dir.read_progress()
    assert progress is None or progress["step"] <= 10
