"""`python -m scaling.run`: train one configuration, or with -m a study of many; the same command again continues."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from scaling.asked import answered

if TYPE_CHECKING:
    from scaling.cli import Job
    from scaling.config import RunConfig


def main() -> None:
    if answered(sys.argv[1:], _show_help):
        return
    from scaling.cli import run_task

    sys.exit(run_task(_drive, _study, sys.argv[1:]))


def _show_help() -> None:
    from scaling.help import help_text

    print(help_text())


def _drive(config: RunConfig) -> int:
    from scaling.launch.driver import drive  # a mistake is told before this is loaded

    return drive(config)


def _study(jobs: Sequence[Job]) -> int:
    from scaling.launch.study_driver import drive_study

    return drive_study(jobs)


if __name__ == "__main__":
    main()
