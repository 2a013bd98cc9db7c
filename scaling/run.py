"""`python -m scaling.run`: train one configuration, or with -m a study of many; the same command
again continues."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaling.commands import entry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scaling.commands.cli import Job
    from scaling.config.run_config import RunConfig


def main() -> None:
    entry.leave(entry.enter(_command))


def _command(words: list[str]) -> int:
    """The imports are here, behind the door: they take seconds."""
    from scaling.composition.flags import answered

    if answered(words, _show_help):
        return 0
    from scaling.commands.cli import run_task

    return run_task(_drive, _study, words)


def _show_help() -> None:
    from scaling.commands.fitted_help import print_help
    from scaling.commands.help import help_text

    print_help(help_text())


def _drive(config: RunConfig) -> int:
    from scaling.launch.run import drive  # a mistake is reported before this is loaded

    return drive(config)


def _study(jobs: Sequence[Job]) -> int:
    from scaling.launch.study.driver import drive_study

    return drive_study(jobs)


if __name__ == "__main__":
    main()
