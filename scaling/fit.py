"""`python -m scaling.fit`: fit scaling laws to a study or a table of runs, and write
a report."""

from __future__ import annotations

from collections.abc import Sequence

from scaling.commands import entry

USAGE = """\
Usage: python -m scaling.fit study=DIR [KEY=VALUE ...]
       python -m scaling.fit table=FILE.csv n=COLUMN c=COLUMN loss=COLUMN [KEY=VALUE ...]

Fits scaling laws. Writes report.html, its figures (PNG, SVG) and fit.json, which
python -m scaling.predict reads.

{keys}

Exit codes: 0 fitted; 1 points that cannot be read or allow no fit; 2 wrong argument; 75 stopped."""


def main(argv: Sequence[str] | None = None) -> int:
    return entry.enter(_command, argv, after_stop=entry.AGAIN)


def _command(words: list[str]) -> int:
    """Fit, write the report and print its core. The imports are here, behind the door."""
    from scaling.commands.fitted_help import print_help
    from scaling.composition.flags import answered
    from scaling.composition.words import option_lines, read_options
    from scaling.laws.options import FitOptions

    if answered(words, lambda: print_help(USAGE.format(keys="\n".join(option_lines(FitOptions))))):
        return 0
    options = read_options(FitOptions, words)
    from scaling.laws.analysis import analyse, load_points
    from scaling.laws.printed import analysis_items, excluded_lines
    from scaling.laws.report import write_report
    from scaling.terminal import print_items

    points = load_points(options)
    print_items(excluded_lines(points))
    analysis = analyse(points, options)
    print_items(analysis_items(analysis))
    written = write_report(
        analysis, options.directory, title=f"Scaling laws of {options.source.name}"
    )
    print(f"Report: {written[-1]}")
    return 0


if __name__ == "__main__":
    entry.leave(main())
