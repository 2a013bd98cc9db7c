"""What an attempt at a run was made with: code, packages, host, command line. Never an environment
variable or a secret."""

from __future__ import annotations

import getpass
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import scaling
from scaling.config.plugins import distributions
from scaling.redaction import redact_command

# Those whose versions can change a run's numbers, or its files.
PACKAGES = (
    "torch",
    "deepspeed",
    "ray",
    "hydra-core",
    "omegaconf",
    "pydantic",
    "numpy",
    "webdataset",
    "tokenizers",
    "safetensors",
    "wandb",
    "tensorboard",
    "triton",
    "nvidia-nccl-cu12",
    "nvidia-nccl-cu13",
)
_GIT_TIMEOUT_S = 5.0  # assumption: a status of a source tree, on a slow network disk too


def describe_attempt(devices: Sequence[str] | None = None) -> dict[str, Any]:
    """A JSON-ready description of this process. `devices` as the vendor names them, one entry each;
    absent when None."""
    found: dict[str, Any] = {
        "command": redact_command(sys.orig_argv),
        "directory": os.getcwd(),
        "python": platform.python_version(),
        "packages": package_versions(),
        "git": git_state(Path(scaling.__file__).parent),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpu_cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "pid": os.getpid(),
        "user": _user(),
        "devices": None if devices is None else list(devices),
    }
    return {name: value for name, value in found.items() if value is not None}


def package_versions() -> dict[str, str]:
    """Our own, those of PACKAGES and those with plugins that are installed, read from their
    metadata without importing them."""
    versions = {"scaling": scaling.__version__}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions | distributions()


def git_state(package: Path) -> dict[str, Any] | None:
    """Commit of the repository that tracks `package`, and whether its tree differs from it
    ("dirty").

    None when the package is not tracked: installed, for example, in a virtual environment inside
    someone's repository.
    """
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit, changes = (
        _git(package, "rev-parse", "HEAD"),
        _git(package, "status", "--porcelain", "--untracked-files=no"),
    )
    if commit is None or changes is None:
        return None
    return {"commit": commit, "dirty": bool(changes)}


def _git(directory: Path, *arguments: str) -> str | None:
    """Standard output of a git command, stripped; None when it fails or there is no git."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(directory), *arguments]
    try:
        done = subprocess.run(
            command,
            env=environment | {"GIT_OPTIONAL_LOCKS": "0"},
            capture_output=True,
            text=True,
            timeout=_GIT_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _user() -> str | None:
    """The login name; None for a user id that the system has no name for, as in some containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return None
