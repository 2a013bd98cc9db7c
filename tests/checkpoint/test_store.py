"""Checkpoints are complete or absent: every damage is found, the newest sound one is used, and
nothing is unpickled."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scaling.checkpoint import store as checkpoint
from scaling.checkpoint.fragments import Fragment, FragmentReader, Snapshot
from scaling.checkpoint.manifest import MANIFEST, Manifest, read_manifest, sealed
from scaling.checkpoint.saver import Checkpointer
from scaling.checkpoint.state import TrainState, check_state
from scaling.checkpoint.store import (
    checkpoint_name,
    commit,
    committed,
    describe_file,
    newest_valid,
    partial_path,
    prune,
    remove_partials,
    verify,
)
from scaling.composition.compose import compose
from scaling.engine.reference import ReferenceEngine
from scaling.errors import CheckpointError
from scaling.parallel.grid import Ranks
from scaling.parallel.part import Part
from scaling.planner.machines.detect import resolve_cluster
from scaling.planner.run_plan import make_plan


def write(directory: Path, step: int, *, n_ranks: int = 2) -> Path:
    """A committed checkpoint of a model of a dozen numbers."""
    partial = partial_path(directory, step)
    partial.mkdir(parents=True)
    files = {}
    for rank in range(n_ranks):
        values = torch.arange(6.0) + 10 * rank + step
        tensors = {"param": values, "exp_avg": values / 2, "exp_avg_sq": values**2}
        fragment = Fragment("weight", Part.whole((n_ranks, 6)), 6 * rank, tensors)
        path = partial / f"rank-{rank:05d}.safetensors"
        Snapshot.of([fragment], optimizer_step=step).write(path)
        files[path.name] = describe_file(path)
    return commit(directory, manifest(step, files))


def manifest(step: int, files: dict[str, Any]) -> Manifest:
    state = TrainState(step=step, n_tokens=512 * step, next_sequence=8 * step).to_dict()
    return Manifest("a" * 64, "b" * 64, step, state, {"dp": 2}, files)


def content(path: Path) -> tuple[Manifest, list[float]]:
    """All that a run would take from a checkpoint: its manifest and its numbers."""
    found = verify(path)
    reader = FragmentReader(path)
    numbers = [
        reader.read(kind, "weight", Part.whole((2, 6)), 0, 12)
        for kind in ("param", "exp_avg", "exp_avg_sq")
    ]
    return found, [*torch.cat(numbers).tolist(), reader.optimizer_step]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, 7)
    assert path == tmp_path / "step-00000007"
    assert sorted(p.name for p in path.iterdir()) == [
        MANIFEST,
        "rank-00000.safetensors",
        "rank-00001.safetensors",
    ]
    found, numbers = content(path)
    assert found.step == found.state["step"] == numbers[-1] == 7
    assert numbers[:12] == [*(torch.arange(6.0) + 7).tolist(), *(torch.arange(6.0) + 17).tolist()]
    assert not partial_path(tmp_path, 7).exists()


# Damage.


def test_every_change_of_a_byte_of_the_manifest_is_found_or_harmless(tmp_path: Path) -> None:
    path = write(tmp_path, 7)
    before, sound = content(path), (path / MANIFEST).read_bytes()
    unnoticed = 0
    for position in range(len(sound)):
        for bit in (0, 5):  # a digit to another, a letter to a capital
            damaged = bytearray(sound)
            damaged[position] ^= 1 << bit
            (path / MANIFEST).write_bytes(damaged)
            try:
                found = content(path)
            except CheckpointError:
                continue
            assert found == before, (
                f"bit {bit} of byte {position} passes, and changes what is loaded"
            )
            unnoticed += 1
    assert unnoticed < 0.2 * len(sound), "white space is harmless, not much else"


def test_every_truncation_of_the_manifest_is_found_or_harmless(tmp_path: Path) -> None:
    path = write(tmp_path, 7)
    sound = (path / MANIFEST).read_bytes()
    for length in range(len(sound) - 2):  # all but the line's end and what closes the object
        (path / MANIFEST).write_bytes(sound[:length])
        with pytest.raises(CheckpointError, match=r"manifest\.json cannot be read"):
            verify(path)


def test_every_change_and_truncation_of_a_file_is_found(tmp_path: Path) -> None:
    path = write(tmp_path, 7)
    for file in path.glob("rank-*"):
        sound = file.read_bytes()
        positions = random.Random(0).sample(range(len(sound)), 200)
        for position in positions:
            damaged = bytearray(sound)
            damaged[position] ^= 1 << position % 8
            for broken in (damaged, sound[:position], sound + bytes([position % 256])):
                file.write_bytes(broken)
                with pytest.raises(CheckpointError, match=re.escape(str(file))):
                    verify(path)
        file.write_bytes(sound)
        verify(path)


@given(
    position=st.integers(min_value=0, max_value=10**6),
    replacement=st.binary(min_size=1, max_size=64),
)
def test_any_replaced_run_of_bytes_is_found(
    tmp_path_factory: pytest.TempPathFactory, position: int, replacement: bytes
) -> None:
    path = write(tmp_path_factory.mktemp("c"), 3)
    file = path / "rank-00000.safetensors"
    sound = file.read_bytes()
    position %= len(sound) - len(replacement)
    damaged = sound[:position] + replacement + sound[position + len(replacement) :]
    file.write_bytes(damaged)
    if damaged == sound:
        verify(path)
    else:
        with pytest.raises(CheckpointError, match="is damaged: its SHA-256"):
            verify(path)


def edited(path: Path, **changes: Any) -> None:
    """Rewrite the manifest with other values, and seal it again."""
    fields = asdict(verify(path)) | changes
    (path / MANIFEST).write_text(json.dumps(sealed(fields)))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, 7)
    (path / "rank-00001.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"rank-00001\.safetensors is missing"):
        verify(path)


def test_a_missing_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    path = write(tmp_path, 7)
    (path / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match=r"manifest\.json cannot be read"):
        verify(path)


def test_a_checkpoint_under_another_name_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, 7)
    path.rename(tmp_path / checkpoint_name(8))
    with pytest.raises(CheckpointError, match="under another name"):
        verify(tmp_path / checkpoint_name(8))


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "deep/er"])
def test_names_outside_the_checkpoint_are_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, 7)
    files = verify(path).files
    edited(path, files=files | {name: {"size_bytes": 1, "sha256": "0" * 64}})
    with pytest.raises(CheckpointError, match="outside the checkpoint"):
        verify(path)


def test_a_format_of_the_future_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, 7)
    edited(path, format_version=99)
    with pytest.raises(CheckpointError, match="has format 99; this version reads"):
        verify(path)


NESTED: Any = []
for _ in range(20):
    NESTED = [NESTED]
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(NESTED),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


def resealed(path: Path, fields: Any) -> None:
    """Write a manifest of any content, sealed where that is possible."""
    fields = sealed(fields) if isinstance(fields, dict) else fields
    (path / MANIFEST).write_text(json.dumps(fields))


@given(data=st.data())
def test_a_manifest_of_any_content_is_damage_or_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("c")
    older, path = write(directory, 3, n_ranks=1), write(directory, 7, n_ranks=1)
    written = verify(path)
    fields = json.loads(json.dumps(asdict(written)))
    keys = data.draw(
        st.sampled_from(
            [(), *((key,) for key in fields), *(("state", key) for key in fields["state"])]
        )
    )
    value = data.draw(JSON_VALUES)
    if len(keys) == 2:
        fields["state"][keys[1]] = value
    elif keys:
        fields[keys[0]] = value
    else:
        fields = value
    resealed(path, fields)
    found = newest_valid(directory, check=lambda manifest: check_state(manifest.state))
    assert found is not None
    if found[0] != older:
        assert (found[0], found[1].files, found[1].step) == (path, written.files, 7)
        json.dumps(asdict(found[1]))
        assert set(TrainState.__dataclass_fields__) - {"step"} >= set(keys[1:]), (
            "whatever stands there can be trained from"
        )


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        "null",
        '{"format_version": 1, "sha256": "0"}',
        "\udcff",
        '{"format_version": ' + "9" * 5000 + "}",
    ],
)
def test_text_that_is_no_manifest_is_damage(tmp_path: Path, content: str) -> None:
    older, path = write(tmp_path, 3), write(tmp_path, 7)
    (path / MANIFEST).write_bytes(content.encode(errors="surrogateescape"))
    found = newest_valid(tmp_path)
    assert found is not None
    assert found[0] == older


@pytest.mark.parametrize(
    "changes",
    [{"files": ["rank-00000.safetensors"]}, {"state": None}, {"files": {}}, {"step": True}],
)
def test_fields_of_another_type_are_damage(tmp_path: Path, changes: dict[str, Any]) -> None:
    older, path = write(tmp_path, 3), write(tmp_path, 7)
    resealed(path, asdict(verify(path)) | changes)
    found = newest_valid(tmp_path)
    assert found is not None
    assert found[0] == older


@pytest.mark.parametrize("name", ["rank-00001.safetensors", MANIFEST])
def test_a_link_that_loops_is_called_what_it_is(tmp_path: Path, name: str) -> None:
    older, path = write(tmp_path, 3), write(tmp_path, 7)
    (path / name).unlink()
    (path / name).symlink_to(name)
    with pytest.raises(CheckpointError, match=os.strerror(errno.ELOOP)):
        verify(path)
    (path / name).unlink()
    with pytest.raises(CheckpointError, match="is missing" if name != MANIFEST else "No such"):
        verify(path)
    (path / name).mkdir()
    with pytest.raises(CheckpointError, match=f"(?i){re.escape(name)}.*(regular file|directory)"):
        verify(path)
    found = newest_valid(tmp_path)
    assert found is not None
    assert found[0] == older


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO])
@pytest.mark.parametrize("name", ["rank-00001.safetensors", MANIFEST])
def test_a_file_that_cannot_be_read_is_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    older, path = write(tmp_path, 3), write(tmp_path, 7)
    opened = Path.open

    def refuse(file: Path, *args: Any, **kwargs: Any) -> Any:
        if file == path / name:
            raise OSError(code, os.strerror(code), str(file))
        return opened(file, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(
        CheckpointError, match=f"{re.escape(name)} cannot be read: .*{os.strerror(code)}"
    ):
        verify(path)
    found = newest_valid(tmp_path)
    assert found is not None
    assert found[0] == older


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
def test_a_directory_that_cannot_be_listed_is_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    older, path = write(tmp_path, 3), write(tmp_path, 7)
    listed, scanned = os.listdir, os.scandir

    def refusing(call: Any) -> Any:
        def refuse(place: Any = ".") -> Any:
            if str(place) == str(path):
                raise OSError(code, os.strerror(code), str(place))
            return call(place)

        return refuse

    monkeypatch.setattr(os, "listdir", refusing(listed))
    monkeypatch.setattr(os, "scandir", refusing(scanned))
    found = newest_valid(tmp_path)
    assert found is not None
    assert found[0] == older


# Which one is used.


def damage(path: Path) -> None:
    file = path / "rank-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def test_the_newest_sound_one_is_used_and_damaged_ones_are_told(tmp_path: Path) -> None:
    paths = [write(tmp_path, step) for step in (10, 20, 100)]
    told: list[Path] = []
    assert newest_valid(tmp_path, on_damaged=lambda path, _: told.append(path)) == (
        paths[2],
        verify(paths[2]),
    )
    assert told == []
    damage(paths[2])
    found = newest_valid(tmp_path, on_damaged=lambda path, _: told.append(path))
    assert found is not None
    assert (found[0], told) == (paths[1], [paths[2]])


def test_none_at_all_is_a_fresh_start_and_none_sound_is_an_error(tmp_path: Path) -> None:
    assert newest_valid(tmp_path / "absent") is None
    assert newest_valid(tmp_path) is None
    paths = [write(tmp_path, step) for step in (10, 20)]
    for path in paths:
        damage(path)
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints") as caught:
        newest_valid(tmp_path)
    assert "to start the run afresh" in (caught.value.fix or "")


def test_partial_and_foreign_directories_are_no_checkpoints(tmp_path: Path) -> None:
    whole = write(tmp_path, 10)
    shutil.copytree(whole, partial_path(tmp_path, 20))
    (tmp_path / "step-20").mkdir()
    (tmp_path / "notes").mkdir()
    assert committed(tmp_path) == [(10, whole)]
    found = newest_valid(tmp_path)
    assert found is not None
    assert found[0] == whole
    remove_partials(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes", "step-00000010", "step-20"]
    remove_partials(tmp_path / "absent")


# Committing.


@pytest.mark.parametrize("failing", ["fsync", "os.replace"])
def test_an_interrupted_commit_leaves_nothing_or_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """The commit is stopped at every call of `failing` in turn: each time the older checkpoint is
    what is found."""
    older = write(tmp_path, 10)
    owner, name = (os, "replace") if failing == "os.replace" else (checkpoint, "fsync")
    original = getattr(owner, name)
    for stop_at in range(1, 20):
        calls = iter(range(1, 1000))

        def interrupted(*args: Any, stop_at: int = stop_at, calls: Iterator[int] = calls) -> Any:
            if next(calls) == stop_at:
                raise KeyboardInterrupt
            return original(*args)

        monkeypatch.setattr(owner, name, interrupted)
        try:
            newer = write(tmp_path, 20)
        except KeyboardInterrupt:
            found = newest_valid(tmp_path)
            assert found is not None
            if (tmp_path / checkpoint_name(20)).exists():
                assert content(tmp_path / checkpoint_name(20))[0].step == 20
                shutil.rmtree(tmp_path / checkpoint_name(20))
            else:
                assert found[0] == older
            remove_partials(tmp_path)
        else:
            assert stop_at > 1, f"{failing} is never called"
            assert content(newer)[0].step == 20
            return
        finally:
            monkeypatch.setattr(owner, name, original)
    raise AssertionError("the commit never came to its end")


def test_a_sound_checkpoint_is_never_overwritten_and_a_damaged_one_is(tmp_path: Path) -> None:
    path = write(tmp_path, 10)
    with pytest.raises(CheckpointError, match="exists already, and is sound"):
        write(tmp_path, 10)
    remove_partials(tmp_path)
    damage(path)
    verify(write(tmp_path, 10))


# Retention.


def test_retention_keeps_the_last_and_every_nth(tmp_path: Path) -> None:
    for step in range(10, 80, 10):
        write(tmp_path, step)
    gone = prune(tmp_path, keep_last=2, keep_every_steps=30)
    assert [step for step, _ in committed(tmp_path)] == [30, 60, 70]
    assert sorted(path.name for path in gone) == [
        checkpoint_name(step) for step in (10, 20, 40, 50)
    ]
    assert prune(tmp_path, keep_last=1, keep_every_steps=None)
    assert [step for step, _ in committed(tmp_path)] == [70]


def test_a_row_of_skipped_steps_replaces_no_checkpoint_before_it(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        write(tmp_path, step)
    # the updates of steps 16 to 40 were left out
    prune(tmp_path, keep_last=2, keep_every_steps=None, last_update=15)
    assert [step for step, _ in committed(tmp_path)] == [10, 30, 40]
    write(tmp_path, 50)
    prune(tmp_path, keep_last=2, keep_every_steps=None, last_update=50)
    assert [step for step, _ in committed(tmp_path)] == [40, 50]


def test_directories_without_a_manifest_are_passed_over_by_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 1)
    for step in range(2, 500):
        (tmp_path / checkpoint_name(step)).mkdir()
    read: list[str] = []
    monkeypatch.setattr(
        checkpoint, "read_manifest", lambda path: (read.append(path.name), read_manifest(path))[1]
    )
    damaged: list[Path] = []
    found = newest_valid(tmp_path, on_damaged=lambda path, error: damaged.append(path))
    assert found is not None
    assert found[1].step == 1
    assert len(damaged) == 498
    assert read == [checkpoint_name(1)], "200 000 of them would take half a minute"


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000):
        write(tmp_path, step)
    prune(tmp_path, keep_last=1, keep_every_steps=None)
    assert [step for step, _ in committed(tmp_path)] == [100_000_000]


def test_links_and_files_named_like_a_step_are_unlinked(tmp_path: Path) -> None:
    directory, elsewhere = tmp_path / "checkpoints", tmp_path / "elsewhere"
    write(directory, 10).rename(elsewhere)
    (directory / checkpoint_name(10)).symlink_to(elsewhere)
    (directory / checkpoint_name(11)).symlink_to(tmp_path / "nowhere")
    (directory / checkpoint_name(12)).write_text("mine")
    (directory / ".step-00000009.damaged").write_text("a file")
    for step in (20, 30):
        write(directory, step)
    assert verify(directory / checkpoint_name(10)).step == 10, "a link to a checkpoint is one"
    prune(directory, keep_last=2, keep_every_steps=None)
    assert sorted(path.name for path in directory.iterdir()) == [
        checkpoint_name(20),
        checkpoint_name(30),
    ]
    assert (elsewhere / MANIFEST).is_file(), "only the link is removed"


def test_links_named_like_a_partial_are_unlinked(tmp_path: Path) -> None:
    directory, elsewhere = tmp_path / "checkpoints", tmp_path / "elsewhere"
    directory.mkdir()
    elsewhere.mkdir()
    partial_path(directory, 20, "abcd").symlink_to(elsewhere)
    partial_path(directory, 30).write_text("a file")
    remove_partials(directory)
    assert list(directory.iterdir()) == []
    assert elsewhere.is_dir()


@pytest.mark.parametrize("kind", ["file", "link", "damaged"])
def test_what_is_no_checkpoint_is_in_no_ones_way(tmp_path: Path, kind: str) -> None:
    """It hinders neither a checkpoint of its own step nor one of an earlier step."""
    for step in (20, 90):
        place = tmp_path / checkpoint_name(step)
        if kind == "file":
            place.write_text("mine")
        elif kind == "link":
            place.symlink_to(tmp_path / "nowhere")
        else:
            damage(write(tmp_path, step))
    assert verify(write(tmp_path, 20)).step == 20


def test_what_resists_removal_is_told_and_what_is_put_aside_beside_it_gets_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [write(tmp_path, step) for step in (10, 20, 30)]
    (tmp_path / ".step-00000030.damaged").mkdir()

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", str(path))

    monkeypatch.setattr(checkpoint, "remove", refuse)
    told: list[Path] = []
    prune(
        tmp_path, keep_last=1, keep_every_steps=None, on_trouble=lambda path, _: told.append(path)
    )
    assert told == [*paths[:2], tmp_path / ".step-00000030.damaged"]
    checkpoint.set_aside(paths[2])
    assert [step for step, _ in committed(tmp_path)] == [10, 20]
    assert len(list(tmp_path.glob(".step-00000030*.damaged"))) == 2


# A whole engine's.


def checkpointer(
    directory: Path, *overrides: str, fingerprint: str = "f" * 64, **more: Any
) -> tuple[Checkpointer, ReferenceEngine]:
    config = resolve_cluster(
        compose(
            [
                "model.n_layers=1",
                "model.d_model=16",
                "model.n_heads=2",
                "tokenizer=byte",
                "train.seq_len=16",
                "train.n_tokens=100_000",
                "layout=manual",
                "layout.dp=1",
                "layout.engine=reference",
                *overrides,
            ]
        )
    )
    layout = make_plan(config).layout
    place = {
        "ranks": Ranks(0, 1, 0),
        "group": None,
        "writing_group": None,
        "on_event": lambda *_, **__: None,
    }
    found = Checkpointer(directory, config, layout, corpus_fingerprint=fingerprint, **place, **more)
    return found, ReferenceEngine(config, layout, torch.device("cpu"))


def test_another_run_or_corpus_is_refused(tmp_path: Path) -> None:
    ours, engine = checkpointer(tmp_path)
    ours.save(engine, TrainState(step=5))
    ours.wait()
    restored = ours.restore(engine)
    assert restored is not None
    assert restored.step == 5
    other, engine = checkpointer(tmp_path, "optim.lr=0.5")
    with pytest.raises(CheckpointError, match="belongs to run"):
        other.restore(engine)
    moved, engine = checkpointer(tmp_path, fingerprint="e" * 64)
    with pytest.raises(CheckpointError, match="its data position would point at other text"):
        moved.restore(engine)
    told, engine = checkpointer(
        tmp_path, fingerprint="e" * 64, corpus_changes=lambda: "train.n_tokens was 9 and is 0"
    )
    with pytest.raises(
        CheckpointError, match=r"\(train.n_tokens was 9 and is 0\): its data position"
    ):
        told.restore(engine)
    sealed, engine = checkpointer(tmp_path, fingerprint="e" * 64, content_fingerprint="f" * 64)
    assert sealed.restore(engine) == restored, (
        "a checkpoint from before counts were part of the fingerprint"
    )
    again, engine = checkpointer(tmp_path, "checkpoint.every_steps=3", "train.log_every=7")
    assert again.restore(engine) == restored, "how a run is executed is no part of it"


def test_a_model_of_another_shape_is_refused(tmp_path: Path) -> None:
    ours, engine = checkpointer(tmp_path)
    ours.save(engine, TrainState(step=5))
    ours.wait()
    _, other = checkpointer(tmp_path, "model.d_model=32")
    with pytest.raises(CheckpointError, match="of another model"):
        other.load(tmp_path / checkpoint_name(5))


def test_the_training_state_survives_exactly(tmp_path: Path) -> None:
    ours, engine = checkpointer(tmp_path)
    state = TrainState(
        step=5,
        n_tokens=10**13 + 1,
        next_sequence=2**40 + 1,
        loss_sum=0.1 + 0.2,
        grad_norm_sum=1 / 3,
        n_logged=2,
    )
    ours.save(engine, state)
    ours.wait()
    assert ours.restore(engine) == state
    assert ours.restore(engine) != replace(state, loss_sum=0.3)


def test_sums_that_are_not_finite_are_words_in_the_manifest(tmp_path: Path) -> None:
    ours, engine = checkpointer(tmp_path)
    state = TrainState(
        step=5,
        loss_sum=math.nan,
        grad_norm_sum=math.inf,
        n_logged=2,
        recent_losses=(1.0, -math.inf),
    )
    ours.save(engine, state)
    ours.wait()
    found = json.loads(
        (tmp_path / checkpoint_name(5) / MANIFEST).read_text(), parse_constant=pytest.fail
    )["state"]
    assert (found["loss_sum"], found["grad_norm_sum"], found["recent_losses"]) == (
        "NaN",
        "Infinity",
        [1.0, "-Infinity"],
    )
    restored = ours.restore(engine)
    assert restored is not None
    assert math.isnan(restored.loss_sum)
    assert replace(restored, loss_sum=0.0) == replace(state, loss_sum=0.0)


def test_a_state_that_none_can_be_trained_from_is_damage_and_one_of_another_version_is_refused(
    tmp_path: Path,
) -> None:
    ours, engine = checkpointer(tmp_path)
    for step in (5, 6):
        ours.save(engine, TrainState(step=step, next_sequence=8 * step))
    ours.wait()
    path = tmp_path / checkpoint_name(6)
    whole = asdict(verify(path))
    resealed(path, whole | {"state": whole["state"] | {"next_sequence": -1}})
    restored = ours.restore(engine)
    assert restored is not None
    assert restored.step == 5
    assert (tmp_path / ".step-00000006.damaged").is_dir()
    path = tmp_path / checkpoint_name(5)
    whole = asdict(verify(path))
    resealed(path, whole | {"state": whole["state"] | {"of_the_future": 1}})
    with pytest.raises(CheckpointError, match="which this version does not know"):
        ours.restore(engine)
    assert path.is_dir()


# Pickles.


def test_a_pickle_in_the_place_of_weights_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, 7)
    file = path / "rank-00000.safetensors"
    torch.save({"weight": torch.zeros(3)}, file)
    with pytest.raises(CheckpointError, match=re.escape(str(file))):
        verify(path)
    with pytest.raises(CheckpointError, match="is not a fragment file"):
        FragmentReader(path)
