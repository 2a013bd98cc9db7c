"""Bad shards, bad disks and clusters that are not there: one message, the documented exit code, and
nothing lost."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from scaling.config.run_config import DataConfig, TokenizerConfig
from scaling.data.prepare.cached import ensure_corpus
from tests.support.runs import ONE_WORKER, Run, Workplace, curve, events

SHORT = (*ONE_WORKER, "train.n_tokens=10_000")


@pytest.fixture
def corpus(workplace: Workplace, single: Run, tmp_path: Path) -> Path:
    """A cache of its own with the prepared corpus, to be damaged."""
    shutil.copytree(workplace.root / "cache", tmp_path / "cache")
    (index,) = (tmp_path / "cache").rglob("index.json")
    return index.parent


def test_a_missing_shard_is_named(workplace: Workplace, corpus: Path, tmp_path: Path) -> None:
    shard = next(corpus.glob("train-*.tar"))
    shard.unlink()
    run = workplace.finish(
        *SHORT, f"data.cache_dir={corpus.parent}", root=tmp_path / "runs", code=1
    )
    assert "DataError" in run.output
    assert shard.name in run.output
    assert "Traceback" not in run.output


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_shard_is_named(
    workplace: Workplace, corpus: Path, tmp_path: Path, damage: str
) -> None:
    shard = next(corpus.glob("train-*.tar"))
    content = bytearray(shard.read_bytes())
    if damage == "truncated":
        del content[len(content) // 2 :]
    else:
        content[len(content) // 2] ^= 4
    shard.write_bytes(content)
    run = workplace.finish(
        *SHORT, f"data.cache_dir={corpus.parent}", root=tmp_path / "runs", code=1
    )
    assert "DataError" in run.output
    assert shard.name in run.output
    assert "Traceback" not in run.output


def test_a_run_without_its_damaged_shards_notes_them_and_ends(
    workplace: Workplace, tmp_path: Path
) -> None:
    data = DataConfig(
        kind="text_files",
        path=workplace.text,
        cache_dir=str(tmp_path / "cache"),
        shard_tokens=20_000,
    )
    first, *others = sorted(
        Path(ensure_corpus(data, TokenizerConfig(kind="byte", vocab_size=257))).glob("train-*.tar")
    )
    assert others
    content = bytearray(first.read_bytes())
    content[len(content) // 2] ^= 4
    first.write_bytes(content)
    options = (
        *SHORT,
        f"data.cache_dir={data.cache_dir}",
        "data.shard_tokens=20_000",
        "data.on_bad_shard=skip",
    )
    run = workplace.finish(*options, root=tmp_path / "runs")
    assert [event["shard"] for event in events(run, "shard_skipped")] == [first.name]
    assert f"Training without shard {first.name}" in run.output


def test_a_cluster_that_is_not_there_is_refused_before_anything_is_written(
    workplace: Workplace, tmp_path: Path
) -> None:
    run = workplace.finish("cluster=8xA100", root=tmp_path / "runs", code=2)
    assert "cluster=8xA100 wants 8 x " in run.output
    assert "dry_run=true" in run.output
    assert "Traceback" not in run.output
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 800 kB: room for one checkpoint of the tiny model, but not for
    two."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system takes root")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=800k", "tmpfs", str(place)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip(f"no small file system can be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk_loses_nothing(workplace: Workplace, single: Run, small_disk: Path) -> None:
    root = small_disk / "runs"
    full = workplace.finish(*ONE_WORKER, root=root, code=1)
    assert "Error: " in full.output
    assert "No space left on device" in full.output
    assert "Traceback" not in full.output
    assert len(list(root.glob("*/checkpoints/step-*"))) == 1
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    assert curve(workplace.finish(*ONE_WORKER, root=root)) == curve(single)


def test_a_read_only_disk_is_refused(workplace: Workplace, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    run = workplace.start(*SHORT, root=small_disk / "runs")
    assert run.wait() == 1
    assert "RunDirError: cannot create" in run.output
    assert "read-only" in run.output.lower()
    assert "run.root=DIR" in run.output
    assert "Traceback" not in run.output
