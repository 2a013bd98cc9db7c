"""Which run a word means: a directory, a name under run.root, or the beginning of one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from scaling.errors import ConfigError, RunDirError
from scaling.runs.directory import RunDir


def find_run(run: str, root: str, notice: Callable[[str], None]) -> Path:
    """The directory of a run by its path, or by its name under `root`: whole, without its id, or
    with the beginning of the id.

    The beginning of the id alone will do, where no run has the word as its name. Several runs:
    the one that was at work last. Raises ConfigError.

    notice: receives which was taken, where several were meant.
    """
    if not run.strip():
        raise ConfigError(
            "the name of the run is empty",
            "from the command line",
            "Give a run's directory or name; scaling.status lists them.",
        )
    parent = RunDir(root).path
    for path in (Path(run).expanduser().absolute(), parent / run):
        if (path / "config.yaml").is_file():
            return path
    runs = [path for path in find_runs(parent) if (path / "config.yaml").is_file()]
    meant = sorted(_meant(run, runs), key=_last_written_s)
    if meant:
        *others, newest = meant
        if others:
            notice(
                f"{run} names {len(meant)} runs of {parent}: taking {newest.name}, the newest, "
                f"not {_listed([path.name for path in reversed(others)])}."
            )
        return newest
    names = [str(path.relative_to(parent)) for path in runs]
    if Path(run).expanduser().is_dir():
        raise ConfigError(
            f"{run} is a directory without config.yaml, so it is no run",
            None,
            _suggestion(parent, names),
        )
    raise ConfigError(
        f"there is no run {run!r}, neither here nor in {parent}",
        "from the command line",
        _suggestion(parent, names),
    )


def find_runs(root: Path) -> Iterator[Path]:
    """Run directories at `root`, in it, or one level down (the runs of a study), by name. Raises
    RunDirError."""
    if is_run(root):
        yield root
        return
    for path in _subdirectories(root):
        if is_run(path):
            yield path
        else:
            yield from (inner for inner in _subdirectories(path) if is_run(inner))


def is_run(path: Path) -> bool:
    return (path / "events.jsonl").is_file() or (path / "config.yaml").is_file()


def _meant(word: str, runs: list[Path]) -> list[Path]:
    """The directories NAME-ID of which word is NAME, else NAME-BEGINNING_OF_ID, else
    BEGINNING_OF_ID: `a` is also the beginning of an id such as a0f3c210."""
    parted = [(path, *path.name.rpartition("-")[::2]) for path in runs]
    return (
        [path for path, name, _ in parted if word == name]
        or [
            path
            for path, name, _ in parted
            if path.name.startswith(word) and len(word) > len(name) + 1
        ]
        or [path for path, _, run_id in parted if run_id.startswith(word)]
    )


def _last_written_s(path: Path) -> tuple[float, str]:
    written_s = [
        file.stat().st_mtime
        for file in (path / "metrics.jsonl", path / "events.jsonl")
        if file.exists()
    ]
    return max(written_s, default=0.0), path.name


def _subdirectories(root: Path) -> list[Path]:
    try:
        return sorted(Path(entry.path) for entry in os.scandir(root) if entry.is_dir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunDirError(
            f"cannot list {root}: {error.strerror}",
            fix="Choose another directory with run.root=DIR.",
        ) from error


def _suggestion(parent: Path, runs: list[str]) -> str:
    if not runs:
        return (
            f"{parent} holds no runs: train one with python -m scaling.run, or say where they are "
            "with run.root=DIR."
        )
    return f"There are: {_listed(runs)}."


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 8} more (python -m scaling.status)" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more
