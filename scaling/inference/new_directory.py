"""A directory that is complete or absent."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from scaling.errors import ConfigError, RunDirError
from scaling.runs.files import fsync


def free_directory(to: str) -> Path:
    """Where the directory will stand. Raises ConfigError when something is there."""
    target = Path(to).expanduser().absolute()
    if target.is_dir() and not any(target.iterdir()):
        return target
    if target.exists():
        raise ConfigError(
            f"{target} exists already",
            f"to={to}",
            "Give a directory that is not there yet, or remove this one.",
        )
    return target


@contextlib.contextmanager
def appearing(target: Path) -> Iterator[Path]:
    """A hidden directory beside `target` that becomes it at the end, and is removed when anything
    goes wrong.

    Raises RunDirError when the disk refuses.
    """
    made = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        made = Path(
            tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent)
        )
        yield made
        for path in [*made.iterdir(), made]:  # which are private to their maker until now
            path.chmod((0o777 if path.is_dir() else 0o666) & ~_umask())
            fsync(path)
        os.replace(made, target)
        fsync(target.parent)
    except (OSError, SafetensorError) as error:
        fix = "Free some space, or choose another directory."
        raise RunDirError(f"cannot write {target}: {error}", f"to={target}", fix) from error
    finally:
        if made is not None and made.exists():
            shutil.rmtree(made)


def _umask() -> int:
    """The umask of this process, which cannot be read without being set."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
