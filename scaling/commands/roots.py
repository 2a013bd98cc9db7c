"""The words of `scaling.status`: directories of runs, and names of runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scaling.commands.notice import say
from scaling.composition.flags import FLAGS
from scaling.config.spelling import no_flag
from scaling.errors import ConfigError
from scaling.runs.by_name import find_run
from scaling.runs.directory import RunDir

DEFAULT_ROOT = "runs"  # run.root in conf/config.yaml


def find_roots(words: Sequence[str]) -> list[Path]:
    """Where to look for runs. Raises ConfigError."""
    roots: list[Path] = []
    runs: list[str] = []
    for number, word in enumerate(words):
        if word.startswith("-") and word != "--json":
            raise no_flag(words, number, ["run.root"], ("--json", *FLAGS))
        if word.startswith("run.root=") or Path(word).expanduser().exists():
            roots.append(RunDir(word.removeprefix("run.root=")).path)
        elif "=" in word:
            raise ConfigError(
                f"unknown argument {word!r}",
                "scaling.status",
                "Use run.root=DIR, directories or names of runs.",
            )
        elif word != "--json":
            runs.append(word)
    for root in roots:
        if not root.is_dir():
            raise ConfigError(
                f"there is no directory {root}",
                "scaling.status",
                "Give the run.root that the runs were given.",
            )
    if runs:
        roots = [
            find_run(run, str(root), say) for run in runs for root in roots or [Path(DEFAULT_ROOT)]
        ]
    return roots or [Path(DEFAULT_ROOT).absolute()]
