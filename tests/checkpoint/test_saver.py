"""Checkpoints are written while training continues: what is saved is what was, errors are reported
and lose nothing, one group commits."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scaling.checkpoint import fragments
from scaling.checkpoint.fence import Fence
from scaling.checkpoint.fragments import FragmentReader
from scaling.checkpoint.manifest import MANIFEST
from scaling.checkpoint.saver import Checkpointer
from scaling.checkpoint.state import TrainState
from scaling.checkpoint.store import committed, newest_valid, prune, verify
from scaling.data.objective import causal_lm
from scaling.engine.reference import ReferenceEngine
from scaling.errors import CheckpointError, SupersededError
from scaling.parallel.exchange import broadcast_json, gather_json
from scaling.parallel.grid import Ranks
from tests.checkpoint.test_store import checkpointer, damage, write
from tests.support.ranks import run_ranks


class Gate:
    """Holds every write of a snapshot back until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self._open = threading.Event(), threading.Event()
        write = fragments.Snapshot.write

        def held_back(snapshot: Any, path: Path) -> None:
            self.reached.set()
            assert self._open.wait(30)
            write(snapshot, path)

        monkeypatch.setattr(fragments.Snapshot, "write", held_back)

    def open(self) -> None:
        self._open.set()


def train_step(engine: ReferenceEngine, number: int) -> None:
    rows = np.random.default_rng(number).integers(0, 257, size=(4, 17))
    engine.step([causal_lm(rows, np.arange(4))], lr=1e-2)


def weights(engine: ReferenceEngine) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in engine.model.named_parameters()}


def saved(path: Path, engine: ReferenceEngine) -> dict[str, torch.Tensor]:
    reader = FragmentReader(path)
    from scaling.parallel.part import Part

    shapes = {name: tuple(parameter.shape) for name, parameter in engine.model.named_parameters()}
    return {
        name: reader.read("param", name, Part.whole(shape), 0, int(np.prod(shape))).view(shape)
        for name, shape in shapes.items()
    }


def test_training_goes_on_while_a_checkpoint_is_written_and_does_not_change_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, engine = checkpointer(tmp_path)
    gate = Gate(monkeypatch)
    train_step(engine, 0)
    then = weights(engine)
    ours.save(engine, TrainState(step=1))
    assert gate.reached.wait(30)
    assert committed(tmp_path) == []
    train_step(engine, 1)
    gate.open()
    ours.wait()
    ((_, path),) = committed(tmp_path)
    assert verify(path).step == 1
    for name, tensor in saved(path, engine).items():
        assert torch.equal(tensor, then[name]), name
    assert any(not torch.equal(then[name], now) for name, now in weights(engine).items())


def test_the_next_checkpoint_waits_for_the_one_on_its_way_and_takes_over_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, engine = checkpointer(tmp_path)
    gate = Gate(monkeypatch)
    ours.save(engine, TrainState(step=1))
    first = ours._memory
    train_step(engine, 0)
    threading.Timer(0.2, gate.open).start()
    assert ours.save(engine, TrainState(step=2)) >= 0.15, "it did not wait, or does not say so"
    ours.wait()
    assert [step for step, _ in committed(tmp_path)] == [1, 2]
    assert first is not None
    assert ours._memory is not None
    assert [f.tensors["param"].data_ptr() for f in first.fragments] == [
        f.tensors["param"].data_ptr() for f in ours._memory.fragments
    ]
    (one, two) = (saved(path, engine) for _, path in committed(tmp_path))
    assert any(not torch.equal(one[name], two[name]) for name in one), (
        "the second holds the numbers of the first"
    )


def test_what_cannot_be_written_is_told_at_the_next_step_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, engine = checkpointer(tmp_path)
    ours.save(engine, TrainState(step=1))
    ours.wait()
    sound = (tmp_path / "step-00000001" / MANIFEST).read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(fragments.Snapshot, "write", full)
        ours.save(engine, TrainState(step=2))
        ours.close()
    assert ours.failed
    with pytest.raises(
        CheckpointError, match=r"step 2 cannot be written .* No space left on device"
    ) as caught:
        ours.wait()
    assert "The previous checkpoint is untouched" in (caught.value.fix or "")
    assert not ours.failed
    assert sorted(path.name for path in tmp_path.iterdir()) == [".fence", "step-00000001"]
    assert (tmp_path / "step-00000001" / MANIFEST).read_bytes() == sound
    ours.save(engine, TrainState(step=3))
    ours.wait()
    assert [step for step, _ in committed(tmp_path)] == [1, 3]


def _save_on_ranks(ranks: Ranks, directory: Path, failing: int | None) -> str:
    """Save once with all ranks, of which one cannot write; what each reports at the end."""
    import torch.distributed as dist

    one, engine = checkpointer(directory / f"alone-{ranks.rank}")
    ours = Checkpointer(
        directory,
        one._config,
        one._writer.layout,
        corpus_fingerprint="f" * 64,
        ranks=ranks,
        group=dist.group.WORLD,
        writing_group=dist.new_group(backend="gloo"),
        on_event=lambda *_, **__: None,
    )
    if ranks.rank == failing:
        ours._writer.__class__._write_own, before = _no_space, ours._writer.__class__._write_own
    try:
        ours.save(engine, TrainState(step=7))
        ours.wait()
    except CheckpointError as error:
        return error.what
    finally:
        if ranks.rank == failing:
            ours._writer.__class__._write_own = before
    return "committed"


def _no_space(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def test_every_rank_is_told_of_the_one_that_could_not_write(tmp_path: Path) -> None:
    for rank in range(2):
        (tmp_path / f"alone-{rank}").mkdir()
    told = run_ranks(_save_on_ranks, 2, tmp_path, 1)
    expected = (
        f"the checkpoint of step 7 cannot be written to {tmp_path} by rank 1:"
        " [Errno 28] No space left on device"
    )
    assert told == [expected] * 2
    assert committed(tmp_path) == []
    assert run_ranks(_save_on_ranks, 2, tmp_path, None) == ["committed"] * 2
    assert sorted(verify(tmp_path / "step-00000007").files) == [
        "rank-00000.safetensors",
        "rank-00001.safetensors",
    ]


def _exchange(ranks: Ranks) -> list[Any]:
    import torch.distributed as dist

    value = {"rank": ranks.rank, "text": "ä" * (1 + 3 * ranks.rank), "x": 0.1 + 0.2}
    return [
        gather_json(value, dist.group.WORLD),
        broadcast_json(value if ranks.rank == 0 else None, dist.group.WORLD),
    ]


def test_small_values_pass_between_ranks_as_they_are() -> None:
    expected = [{"rank": rank, "text": "ä" * (1 + 3 * rank), "x": 0.1 + 0.2} for rank in range(2)]
    assert run_ranks(_exchange, 2) == [[expected, expected[0]]] * 2
    assert gather_json(3, None) == [3]
    assert broadcast_json("a", None) == "a"


# Which group of workers commits.


def test_a_group_that_was_superseded_commits_nothing(tmp_path: Path) -> None:
    old, engine = checkpointer(tmp_path)
    old.save(engine, TrainState(step=5))
    old.wait()
    new, other = checkpointer(tmp_path)
    assert new.restore(other) == TrainState(step=5)
    old.save(engine, TrainState(step=10))
    with pytest.raises(SupersededError, match="has taken over the run"):
        old.wait()
    assert [step for step, _ in committed(tmp_path)] == [5]
    new.save(other, TrainState(step=10))
    new.wait()
    assert [step for step, _ in committed(tmp_path)] == [5, 10]


def test_a_commit_under_way_is_not_overtaken(tmp_path: Path) -> None:
    fence = Fence(tmp_path / ".fence")
    name = fence.take()
    taken = threading.Event()
    with fence.passing(name):
        thread = threading.Thread(target=lambda: (fence.take(), taken.set()))
        thread.start()
        assert not taken.wait(0.2), "the fence was taken in the middle of a commit"
    thread.join()
    with pytest.raises(SupersededError), fence.passing(name):
        pass


def test_a_newer_step_is_never_followed_by_an_older_one(tmp_path: Path) -> None:
    write(tmp_path, 10)
    with pytest.raises(
        CheckpointError, match=r"holds step 10 already, which is newer than this of step 9"
    ):
        write(tmp_path, 9)
    assert [step for step, _ in committed(tmp_path)] == [10]


def test_damaged_ones_are_put_aside_and_do_not_count(tmp_path: Path) -> None:
    ours, engine = checkpointer(tmp_path, "checkpoint.keep_last=1")
    for step in (5, 10):
        ours.save(engine, TrainState(step=step))
        ours.wait()
    assert [step for step, _ in committed(tmp_path)] == [10]
    ours, engine = checkpointer(tmp_path, "checkpoint.keep_last=3")
    for step in (15, 20):
        ours.save(engine, TrainState(step=step))
        ours.wait()
    damage(tmp_path / "step-00000020")
    again, engine = checkpointer(tmp_path, "checkpoint.keep_last=1")
    assert again.restore(engine) == TrainState(step=15)
    assert (tmp_path / ".step-00000020.damaged").is_dir()
    again.save(engine, TrainState(step=18))
    again.wait()
    assert [step for step, _ in committed(tmp_path)] == [18], (
        "the only sound one went, and the damaged one stayed"
    )
    assert (tmp_path / ".step-00000020.damaged").is_dir()
    again.save(engine, TrainState(step=20))
    again.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".fence", "step-00000020"]


def test_the_last_damaged_one_stays_where_it_is(tmp_path: Path) -> None:
    ours, engine = checkpointer(tmp_path)
    ours.save(engine, TrainState(step=5))
    ours.wait()
    damage(tmp_path / "step-00000005")
    for _ in range(2):
        again, engine = checkpointer(tmp_path)
        with pytest.raises(CheckpointError, match="none of the 1 checkpoints"):
            again.restore(engine)


def test_a_file_that_the_manifest_does_not_name_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, 7)
    (path / ".nfs0000").touch()
    verify(path)
    (path / "rank-00002.safetensors").write_bytes((path / "rank-00001.safetensors").read_bytes())
    with pytest.raises(
        CheckpointError, match=r"rank-00002\.safetensors is not named by the manifest"
    ):
        newest_valid(tmp_path)


def test_retention_of_nothing_is_nothing(tmp_path: Path) -> None:
    assert prune(tmp_path, keep_last=1, keep_every_steps=None) == []


def test_a_state_of_another_version_is_refused() -> None:
    state = TrainState(step=3, loss_sum=0.5)
    assert TrainState.from_dict(state.to_dict()) == state
    assert TrainState.from_dict({"step": 3}) == TrainState(step=3), (
        "keys that came later have their defaults"
    )
    with pytest.raises(CheckpointError, match="'epoch', which this version does not know"):
        TrainState.from_dict({"step": 3, "epoch": 1})


def test_checkpoints_of_skipped_steps_leave_the_one_before_them(tmp_path: Path) -> None:
    ours, engine = checkpointer(tmp_path, "checkpoint.keep_last=1")
    for step, skipped in ((2, 0), (4, 2), (6, 4)):
        ours.save(engine, TrainState(step=step, skipped_in_a_row=skipped))
        ours.wait()
    assert [step for step, _ in committed(tmp_path)] == [2, 6]
    ours.save(engine, TrainState(step=8))
    ours.wait()
    assert [step for step, _ in committed(tmp_path)] == [8]
