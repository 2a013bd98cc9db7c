"""`python -m scaling.run`: train one configuration, or with -m a study of many; the same command again continues."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from scaling import door

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scaling.cli import Job
    from scaling.config import RunConfig


def main() -> None:
    door.leave(door.enter(_command))


def _command() -> int:
    """The imports are here, behind the door: they take seconds."""
    from scaling.asked import answered

    if answered(sys.argv[1:], _show_help):
        return 0
    from scaling.cli import run_task

    return run_task(_drive, _study, sys.argv[1:])


def _show_help() -> None:
    from scaling.help import help_text
    from scaling.screen import print_help

    print_help(help_text())


def _drive(config: RunConfig) -> int:
    from scaling.launch.driver import drive  # a mistake is told before this is loaded

    return drive(config)


def _study(jobs: Sequence[Job]) -> int:
    from scaling.launch.study_driver import drive_study

    return drive_study(jobs)


if __name__ == "__main__":
    main()
