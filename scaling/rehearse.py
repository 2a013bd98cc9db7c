"""`python -m scaling.rehearse`: a drill. Trains once unbroken, once with processes killed at
random, and compares the two."""

from __future__ import annotations

from collections.abc import Sequence

from scaling.commands import entry

HELP = """\
python -m scaling.rehearse [kills=N] [KEY=VALUE] ... [GROUP=OPTION] ...

Shows that a run survives: it is trained once unbroken, and once while its processes (workers, Ray
Train's controller, Ray's node process, the driver) are killed at random steps and it is stopped and
started again with other numbers of workers. Reports sequences that were repeated or skipped, the
greatest difference of losses, the seconds that a kill costs, and goodput. Everything but the
drill's own keys is for the run, as for python -m scaling.run.

  python -m scaling.rehearse model=gpt_nano kills=20
  python -m scaling.rehearse model=gpt_nano kills=50 resizes=0   equal bit for bit on a CPU
  python -m scaling.rehearse model=gpt_nano kills=10 nodes=3     machines die and come back, too

Exit codes: 0 passed; 1 not; 2 configuration wrong; 75 stopped.

Keys of the drill and their defaults
"""
AFTER_STOP = "the run and the drill's machines are stopped, and their record stays"


def main(argv: Sequence[str] | None = None) -> int:
    return entry.enter(_command, argv, after_stop=AFTER_STOP)


def _command(words: list[str]) -> int:
    """The imports are here, behind the door: they take a second."""
    from scaling.commands.composed import refuse_words
    from scaling.commands.fitted_help import print_help
    from scaling.composition.flags import answered
    from scaling.composition.words import option_lines, read_options
    from scaling.rehearsal.options import DrillOptions, split_words

    if answered(words, lambda: print_help(HELP + "\n".join(option_lines(DrillOptions)))):
        return 0
    own, run_words = split_words(words)
    refuse_words(run_words, own=list(DrillOptions.model_fields))
    options = read_options(DrillOptions, own)
    from scaling.rehearsal.course import rehearse

    return rehearse(options, run_words, words)


if __name__ == "__main__":
    entry.leave(main())
