"""The results of a study: written, printed, and sent to the logger."""

from __future__ import annotations

from functools import partial

from rich.console import Console

from scaling.metrics.sinks import back_fill
from scaling.metrics.wandb_sink import log_results
from scaling.studies.labels import labels
from scaling.studies.results import Row, result_rows, results_table, write_results
from scaling.studies.trials import Standing, Study
from scaling.terminal import print_line


def report(study: Study, standings: dict[str, Standing], console: Console) -> list[Row]:
    """Write, print and send the results."""
    rows = result_rows(study, standings)
    path = write_results(rows, study.directory)
    if rows:
        console.print(results_table(study, rows))
    say = partial(print_line, console)
    if study.base.logger.kind == "wandb":
        logger = study.base.logger
        grouped = logger.model_copy(update={"group": logger.group or study.name})
        log_results(study.base.model_copy(update={"logger": grouped}), study.directory, rows, say)
    say(f"Results: {path}")
    return rows


def back_fill_finished(study: Study, standings: dict[str, Standing], console: Console) -> None:
    """Give the logger what it lacks of the trials that earlier commands have finished."""
    if study.base.logger.kind == "none":
        return
    called = labels(study.trials)
    for trial in study.trials:
        if standings[trial.identity].state == "finished":
            with trial.run_dir.lock():
                back_fill(
                    trial.config,
                    trial.run_dir.path,
                    partial(_print_labelled, console, called[trial.name]),
                )


def _print_labelled(console: Console, label: str, text: str) -> None:
    print_line(console, f"{label}: {text}")
