"""A corpus that is built in its final place by one command, which may be killed and given again."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from scaling.data.prepare.build import WORK, Recipe, build
from scaling.data.prepare.pieces import local_paths
from scaling.data.prepare.sources import UnfitInput, files_identity
from scaling.data.prepare.tasks import Report
from scaling.data.shards import FORMAT_VERSION, INDEX_FILE, CorpusIndex
from scaling.errors import ConfigError, DataError
from scaling.runs.file_lock import file_lock

RECIPE_FILE = ".recipe.json"
"""Holds, in the directory of the corpus, the hash of what it is made of."""
LOCK_FILE = ".recipe.lock"
"""Lock beside it, held by the process that builds there."""
WAITING = "waiting for another process that builds the same corpus"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def build_or_finish(
    recipe: Recipe,
    out: str | Path,
    processes: int,
    report: Report,
    *,
    commits: Mapping[str, str] | None = None,
    wait: bool = False,
) -> tuple[CorpusIndex, bool]:
    """The corpus in `out`, and whether all the work was done in this call.

    `commits`: of data sets of the hub, to be noted. `wait`: until another process that builds there
    has ended.

    Raises ConfigError when the directory holds anything else, or another process builds there;
    DataError for bad input and a full disk. What is done is left for the next call, but for inputs
    and options that would end the same way again.
    """
    directory = Path(out).expanduser().absolute()
    try:
        with _owned(directory, identity(recipe), commits or {}, report if wait else None) as fresh:
            if (directory / INDEX_FILE).is_file():
                report("the corpus is already there", 1.0)
                return CorpusIndex.load(directory), False
            try:
                return build(recipe, directory, processes, report), fresh
            # These options with these inputs come to nothing: others may use the directory.
            except UnfitInput as error:
                _give_up(directory)
                raise DataError(error.what, error.where, error.fix) from error
            except ConfigError:
                _give_up(directory)
                raise
    except OSError as error:
        full = (
            "Free some space: about three times the size of the text is needed meanwhile. T"
            if error.errno in _FULL
            else "T"
        )
        fix = f"{full}he same command continues where it ended."
        raise DataError(
            f"the corpus cannot be built in {directory}: {error.strerror or error}",
            error.filename,
            fix,
        ) from error


def noted_commits(out: str | Path) -> dict[str, str]:
    """The commits of data sets that an earlier call began with: a data set may have moved on
    since."""
    try:
        found = json.loads((Path(out).expanduser() / RECIPE_FILE).read_bytes())
        return dict(found.get("commits", {}))
    except (OSError, ValueError):
        return {}


def identity(recipe: Recipe) -> str:
    """Hash of the recipe and of the size and time of change of its files. Raises DataError for one
    that is not there."""
    parts = repr((FORMAT_VERSION, recipe)) + files_identity(local_paths(recipe.pieces))
    return hashlib.sha256(parts.encode(errors="surrogateescape")).hexdigest()


def _give_up(directory: Path) -> None:
    """Forget which recipe the directory is for. Called under its lock."""
    shutil.rmtree(directory / WORK, ignore_errors=True)
    os.truncate(directory / RECIPE_FILE, 0)


@contextlib.contextmanager
def _owned(
    directory: Path, recipe: str, commits: Mapping[str, str], wait: Report | None
) -> Iterator[bool]:
    """Hold the directory for this recipe; yields whether it is new."""
    where = f"out={directory}"
    directory.mkdir(parents=True, exist_ok=True)
    fix = "Choose another out, or delete that one."

    def on_wait() -> None:
        if wait is None:
            raise ConfigError(
                "another process prepares a corpus in the directory",
                where,
                "Wait for it, or choose another.",
            )
        wait(WAITING, None)

    # another process may have created the lock and not yet the recipe
    if {path.name for path in directory.iterdir()} <= {LOCK_FILE} or (
        directory / RECIPE_FILE
    ).exists():
        with (
            file_lock(directory / LOCK_FILE, on_wait),
            (directory / RECIPE_FILE).open("a+b") as file,
        ):
            found = _recipe_in(file)
            if found not in (None, recipe):
                raise ConfigError(
                    "the directory holds a corpus of other inputs or options, or of inputs that "
                    "have changed",
                    where,
                    fix,
                )
            if found is None:
                file.write(json.dumps({"recipe": recipe, "commits": dict(commits)}).encode())
                file.flush()
                os.fsync(file.fileno())
            yield found is None
    else:
        raise ConfigError("the directory is not empty, and no preparation began it", where, fix)


def _recipe_in(file: IO[bytes]) -> str | None:
    """None where nothing, or not all, was written before a kill."""
    file.seek(0)
    try:
        return str(json.loads(file.read())["recipe"])
    except ValueError:
        file.truncate(0)
        return None
