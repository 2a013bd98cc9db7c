"""A study from its declaration to its results: what the process at the user's terminal does with
many runs.

Each trial is an ordinary run in a directory of its own. `runner.py` runs them, `search/` lets Ray
Tune decide on them, `report.py` writes what came of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console

from scaling.config.run_config import RunConfig
from scaling.data.preflight import check_inputs
from scaling.errors import EXIT_FINISHED, PlanError, ScalingError
from scaling.launch.study.report import back_fill_finished, report
from scaling.launch.study.runner import Runner
from scaling.planner.machines.detect import check_available
from scaling.runs.files import disk_error
from scaling.runs.lock import DriverLock
from scaling.studies.remaining import study_table
from scaling.studies.trials import Standing, Study, declare, standing_of
from scaling.terminal import output_console, print_line


def drive_study(jobs: Sequence[tuple[RunConfig, tuple[str, ...]]]) -> int:
    """List, and unless `dry_run`, run the trials of these configurations; returns the exit code,
    raises ScalingError.

    0 all are finished; 1 some failed too often, all others are finished; 75 stopped, the same
    command continues.
    """
    console = output_console()
    if jobs[0][0].study.is_search:
        return _drive_search(jobs, console)
    study = declare(jobs)
    standings = _standings(study)
    console.print(study_table(study, standings))
    _refuse(study)
    _check_inputs(
        trial.config for trial in study.trials if standings[trial.identity].state != "finished"
    )
    if study.base.dry_run:
        return EXIT_FINISHED
    with _holding(study):
        standings |= _mended(study, standings, console)
        back_fill_finished(study, standings, console)
        return Runner(study, standings, console).run()


def _drive_search(jobs: Sequence[tuple[RunConfig, tuple[str, ...]]], console: Console) -> int:
    from scaling.launch.search.tune import declare_search, drawn_study, run_search, search_lines

    study = declare_search(jobs)
    for line in search_lines(study):
        print_line(console, line)
    if study.trials:
        console.print(study_table(study, _standings(study)))
    _check_inputs([study.base])
    if study.base.dry_run:
        return EXIT_FINISHED
    with _holding(study):
        back_fill_finished(study, _standings(study), console)
        code = run_search(study, console)
        study = drawn_study(study)
        report(study, _standings(study), console)
    return code


def _check_inputs(configs: Iterable[RunConfig]) -> None:
    """Whether the data of all trials are there, each once. Raises ConfigError, DataError."""
    for config in {
        repr((c.data, c.tokenizer, c.train.seq_len, c.objective)): c for c in configs
    }.values():
        check_inputs(config)


def _standings(study: Study) -> dict[str, Standing]:
    return {trial.identity: standing_of(trial) for trial in study.trials}


def _mended(study: Study, standings: dict[str, Standing], console: Console) -> dict[str, Standing]:
    """How trials stand whose records were damaged, now that these are set aside."""
    found = {}
    for trial in study.trials:
        if standings[trial.identity].state == "damaged":
            try:
                with trial.run_dir.lock():
                    texts = trial.run_dir.mend()
            except ScalingError as error:
                texts = [str(error)]
            for text in texts:
                console.print(f"{trial.name}: {text}", highlight=False, markup=False)
            found[trial.identity] = standing_of(trial)
    return found


@contextlib.contextmanager
def _holding(study: Study) -> Iterator[None]:
    """The study's directory, with its lock. Raises RunDirError, or ConfigError where the cluster is
    not here."""
    check_available(study.base)
    try:
        study.directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error("create", study.directory, error) from error
    with DriverLock(study.directory / "driver.lock").hold():
        yield


def _refuse(study: Study) -> None:
    """Raise PlanError where a trial cannot be planned: the whole study is refused before anything
    of it is started."""
    refused = study.refused
    if refused:
        first = refused[0].refused
        assert first is not None
        more = (
            f" ({len(refused)} of {len(study.trials)} trials are refused)"
            if len(refused) > 1
            else ""
        )
        raise PlanError(f"{refused[0].name}: {first.what}{more}", first.where, first.fix)
