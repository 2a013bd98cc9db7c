"""`python -m scaling.plan`: every legal layout of a model on a cluster, ranked, before a device is
held."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scaling.commands import entry

HELP = """\
python -m scaling.plan [GROUP=OPTION] [KEY=VALUE] ... [--json] [--refused]

Ranks every legal layout of a model on a cluster; needs no GPU. Groups and keys are those of python
-m scaling.run --help.

  python -m scaling.plan model=gpt_13b cluster=8x8xA100 train.global_batch_size=1024
  python -m scaling.plan model=gpt_7b cluster=2x8xL40S plan.top=10 --refused
  python -m scaling.plan model=gpt_1b cluster=8xH100 plan.output=plan.json plan.calibrate=rows.csv

--json       print the whole answer as JSON
--refused    list layouts that break a rule, with the rule, and those that do not fit
layout=manual layout.tp=2 ...  rank the layouts that have what is fixed
score TABLE.csv ...  predict the rows of tables of measurements; see score --help
cluster=NxMxGPU  N nodes of M GPUs of conf/cluster/device; -spot at the end: preemptible

Exit codes: 0 something fits; 2 configuration wrong, or nothing fits.
"""
FLAGS = ("--json", "--refused")


def main(argv: Sequence[str] | None = None) -> int:
    return entry.enter(_command, argv, after_stop=entry.AGAIN)


def _command(words: list[str]) -> int:
    """The imports are here, behind the door: they take a second."""
    from scaling.commands.fitted_help import print_help
    from scaling.composition.flags import answered

    if words[:1] == ["score"]:
        from scaling.planner.measured.score import main as score_tables

        return score_tables(words[1:])
    if answered(words, lambda: print_help(HELP)):
        return 0
    return _plan(words)


def _plan(words: list[str]) -> int:
    from scaling.commands.composed import refuse_words

    flags = {word for word in words if word in FLAGS}
    given = [word for word in words if word not in flags]
    refuse_words(given, FLAGS)
    from scaling.composition.compose import compose
    from scaling.errors import PlanError
    from scaling.planner.answer import ranked_plan
    from scaling.planner.machines.detect import resolve_cluster
    from scaling.planner.measured.calibrate import scale_of
    from scaling.planner.show.ranking import lines
    from scaling.runs.files import to_json
    from scaling.terminal import print_items

    config = resolve_cluster(compose(given))
    whole = "--json" in flags or config.plan.output is not None
    answer = ranked_plan(
        config,
        time_scale=scale_of(config),
        refused="--refused" in flags,
        most=None if whole else config.plan.top,
    )
    if config.plan.output:
        _write(Path(config.plan.output).expanduser(), to_json(answer, indent=1))
    if "--json" in flags:
        print(to_json(answer, indent=1))
    else:
        print_items(lines(answer, config.plan.top))
    return 0 if answer["layouts"] else PlanError.exit_code


def _write(path: Path, text: str) -> None:
    from scaling.errors import ConfigError

    try:
        path.write_text(text + "\n")
    except OSError as error:
        raise ConfigError(
            f"plan.output={path} cannot be written: {error.strerror}",
            None,
            "Give a file in a directory that exists.",
        ) from error


if __name__ == "__main__":
    entry.leave(main())
