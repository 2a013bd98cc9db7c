"""`python -m scaling.run`: train one configuration, or with -m a study of many; the same command again continues."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from scaling.cli import Job, run_task


def main() -> None:
    if {"--help", "-h"} & set(sys.argv[1:]):
        from scaling.help import help_text

        print(help_text())
        return
    from scaling.launch.driver import drive

    sys.exit(run_task(drive, _study, sys.argv[1:]))


def _study(jobs: Sequence[Job]) -> int:
    from scaling.launch.study_driver import drive_study

    return drive_study(jobs)


if __name__ == "__main__":
    main()
