"""`python -m scaling.status`: the runs under a directory, how they stand, and when they will be
done."""

from __future__ import annotations

from collections.abc import Sequence

from scaling.commands import entry

USAGE = """\
Usage: python -m scaling.status [run.root=DIR] [DIR | RUN ...] [--json]

Shows every run under a directory of runs (default: runs), or the runs named.
  run.root=DIR   the directory of run directories, as for python -m scaling.run
  DIR ...        directories of runs, or single run directories
  RUN ...        names of runs there, without their ids where that is enough
  --json         one JSON object a run, for programs; what is not known is null
  --help         this text"""


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code is 0, 1 where a directory cannot be read, or 2 for a wrong argument."""
    return entry.enter(_command, argv, after_stop=entry.AGAIN)


def _command(words: list[str]) -> int:
    """Print the table. The imports are here, behind the door."""
    from scaling.commands.fitted_help import print_help
    from scaling.composition.flags import answered

    if answered(words, lambda: print_help(USAGE)):
        return 0
    from dataclasses import asdict

    from scaling.commands.roots import find_roots
    from scaling.runs.by_name import find_runs
    from scaling.runs.files import to_json
    from scaling.studies.status import status_items, status_of
    from scaling.terminal import print_items

    roots = find_roots(words)
    statuses = [status_of(path, root) for root in roots for path in find_runs(root)]
    if "--json" in words:
        for status in statuses:
            print(to_json(asdict(status)))
    elif statuses:
        print_items(status_items(statuses))
    else:
        places = ", ".join(str(root) for root in roots)
        print(f"No runs under {places}. Start one with: python -m scaling.run")
        print("Or look elsewhere with: run.root=DIR")
    return 0


if __name__ == "__main__":
    entry.leave(main())
