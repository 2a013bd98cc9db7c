"""A handle on a directory of runs and their results."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scaling import markup
from scaling.api.arguments import import_pandas
from scaling.api.run_handle import Run
from scaling.errors import ConfigError

if TYPE_CHECKING:
    import pandas


def open_study(directory: str | Path) -> Study:
    """Open the study, or any directory of runs, at `directory`. Raises ConfigError where there is
    none."""
    path = Path(directory).expanduser().absolute()
    if not path.is_dir():
        fix = "Give the directory that holds the study's runs: RUN_ROOT/STUDY_NAME."
        raise ConfigError(f"there is no directory {path}", "scaling.open_study", fix)
    return Study(path)


@dataclass(frozen=True)
class Study:
    """A directory of runs and their results."""

    path: Path

    @property
    def runs(self) -> list[Run]:
        """The runs that have begun, by name."""
        from scaling.runs.by_name import find_runs

        return [Run(path) for path in find_runs(self.path)]

    @property
    def rows(self) -> list[dict[str, str]]:
        """The lines of results.csv as text, one per trial. Raises ConfigError where the file is
        missing."""
        from scaling.laws.from_runs import RESULTS

        try:
            with (self.path / RESULTS).open(newline="", encoding="utf-8") as file:
                return list(csv.DictReader(file))
        except OSError as error:
            fix = "The study's driver writes it when a trial ends; .runs lists the runs themselves."
            what = f"{self.path} has no {RESULTS}"
            raise ConfigError(what, "Study.results", fix) from error

    @property
    def results(self) -> pandas.DataFrame:
        """One row per trial: its state, varied keys, N, D, C, losses and times."""
        from scaling.laws.from_runs import RESULTS

        pandas = import_pandas("Study.results")
        self.rows  # noqa: B018 - the error of a missing file
        return pandas.read_csv(self.path / RESULTS)

    def _repr_html_(self) -> str:
        try:
            rows = self.rows
        except ConfigError:
            runs = self.runs
            return markup.table(
                ("run", "state"), ((r.path.name, r.state) for r in runs), self.path.name
            )
        head = list(rows[0]) if rows else []
        return markup.table(head, ([*row.values()] for row in rows), self.path.name)
