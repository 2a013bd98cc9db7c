"""Fit scaling laws to tables and studies, and predict from them."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from scaling import markup
from scaling.api.arguments import checked, named
from scaling.api.run_handle import Picture
from scaling.api.study_handle import Study
from scaling.errors import ConfigError

if TYPE_CHECKING:
    from scaling.laws.analysis import Analysis
    from scaling.laws.answer import Prediction
    from scaling.laws.forecast import Law


@runtime_checkable
class Frame(Protocol):
    """A table that lists its rows, such as a pandas DataFrame."""

    def to_dict(self, orient: Any = ..., /) -> Any: ...


_NOT_OF_FIT = {
    "out": "Use law.write_report(DIR) on the result.",
    "table": "Pass the file as the first argument.",
    "study": "Pass the directory as the first argument.",
}
_NOT_OF_PREDICT = {
    "fit": "Pass the report's directory as the first argument.",
    "out": "Use answer.recommended.config, or python -m scaling.predict out=FILE.",
    "launch": "Use scaling.start(scaling.compose(answer.recommended.overrides)).",
    "json": "Use answer.to_dict().",
}
"""Options of the commands that the functions do not take, and what does the same."""


@dataclass(frozen=True, repr=False)
class FittedLaws:
    """Scaling laws fitted to one table of runs: parametric forms, IsoFLOP curves, the envelope.

    analysis: everything that was fitted, with draws, residuals and what was refused.
    """

    analysis: Analysis
    title: str

    @property
    def forms(self) -> list[str]:
        """Names of the fitted forms. Predictions use the first one by default."""
        return list(self.analysis.forms)

    def law(self, form: str | None = None) -> Law:
        """The law of one form, for predictions. Raises ConfigError for a form that was not
        fitted."""
        name = form or next(iter(self.analysis.forms), None)
        if name not in self.analysis.forms:
            fix = f"There are: {', '.join(self.forms) or 'none'}."
            raise ConfigError(f"form={name} was not fitted", "FittedLaws.law", fix)
        return self.analysis.forms[name].law

    @property
    def parameters(self) -> dict[str, dict[str, tuple[float, float, float]]]:
        """Values by form and parameter, each with its 95 % interval by bootstrap over runs."""
        from scaling.laws.intervals import percentile_interval

        found = {}
        for name, fitted in self.analysis.forms.items():
            drawn = fitted.fit.form.reported(fitted.bootstrap.theta)
            found[name] = {
                key: (value, *percentile_interval(drawn[key]))
                for key, value in fitted.fit.parameters.items()
            }
        return found

    @property
    def figures(self) -> dict[str, Picture]:
        """The report's figures by name."""
        from scaling.laws.figures import draw_all

        return {name: Picture(png) for name, png, _ in draw_all(self.analysis)}

    def write_report(self, directory: str | Path) -> Path:
        """Write report.html, its figures and fit.json; returns the page. Raises RunDirError."""
        from scaling.laws.report import write_report

        return write_report(self.analysis, Path(directory).expanduser(), title=self.title)[-1]

    def __repr__(self) -> str:
        forms = ", ".join(self.forms) or "no form"
        return f"<{self.title}: {len(self.analysis.points)} points, {forms}>"

    def _repr_html_(self) -> str:
        rows = [
            (name, key, f"{value:.6g}", f"{low:.4g} to {high:.4g}")
            for name, values in self.parameters.items()
            for key, (value, low, high) in values.items()
        ]
        head = ("form", "parameter", "value", "95 % interval")
        return markup.table(head, rows, f"{self.title}: {len(self.analysis.points)} points")


def fit_law(
    source: Study | Frame | Iterable[Mapping[str, Any]] | str | Path, **options: Any
) -> FittedLaws:
    """Fit scaling laws to a study, a CSV file, a pandas frame or a list of mappings.

    options: those of `python -m scaling.fit`. A table needs the names of its columns of N, D or C:
    n="params", d="tokens", loss="val_loss"; form=["chinchilla"] fits that form alone. The
    report is written by `FittedLaws.write_report`, not by out. Raises ConfigError for a wrong
    option, DataError where the points allow no fit.
    """
    from scaling.laws.analysis import analyse, load_points
    from scaling.laws.options import FitOptions

    with tempfile.TemporaryDirectory() as scratch:
        key, path, name = _source(source, Path(scratch))
        # a table that was written here is gone when the error is read
        places = {str(path): "the table"} if path.is_relative_to(scratch) else {}
        with named("scaling.fit_law", places):
            asked = checked(FitOptions, {key: str(path)}, options, _NOT_OF_FIT)
            analysis = analyse(load_points(asked), asked)
    if places:
        asked = analysis.options.model_copy(update={"table": name})
        analysis = replace(analysis, options=asked)
    return FittedLaws(analysis, f"Scaling laws of {name}")


def predict_from(law: FittedLaws | str | Path, **question: Any) -> Prediction:
    """Predict from a fitted law: c=FLOPS, or n=PARAMETERS and d=TOKENS, or loss=NATS.

    law: the result of `fit_law`, or the directory of a report of `python -m scaling.fit`. question:
    also form="kaplan", cluster="8xH100" (hours, cost and energy of the recommended run) and
    model="from_law" (its shape and command). Writes and starts nothing. Raises ConfigError.
    """
    from scaling.laws import fit_file
    from scaling.laws.answer import predict
    from scaling.laws.options import PredictOptions

    path = "here" if isinstance(law, FittedLaws) else str(Path(law).expanduser())
    with named("scaling.predict_from"):
        asked = checked(PredictOptions, {"fit": path}, question, _NOT_OF_PREDICT)
        if isinstance(law, FittedLaws):
            return predict(fit_file.to_json(law.analysis), asked)
        return predict(fit_file.read(Path(path)), asked)


def _source(
    source: Study | Frame | Iterable[Mapping[str, Any]] | str | Path, scratch: Path
) -> tuple[str, Path, str]:
    """The option that names the points, their path, and their name in titles."""
    if isinstance(source, Study):
        return "study", source.path, source.path.name
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        return ("study" if path.is_dir() else "table"), path, path.name
    rows = source.to_dict("records") if isinstance(source, Frame) else list(source)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    # Through a file: the text of a float reads back as the same float, and the table is checked
    # by the same reader as every other.
    path = scratch / "table.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return "table", path, "a table"
