"""`python -m scaling.run`: train one configuration, or continue it."""

from __future__ import annotations

import sys

from scaling.cli import run_task


def main() -> None:
    if {"--help", "-h"} & set(sys.argv[1:]):
        from scaling.help import help_text

        print(help_text())
        return
    from scaling.launch.driver import drive

    sys.exit(run_task(drive, sys.argv[1:]))


if __name__ == "__main__":
    main()
