"""Write an analysis to fit.json at full precision, and read its laws for predictions.

Each float is the shortest text that reads back as the same float; infinite values and NaN become
null.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from scaling.errors import ConfigError, DataError, RunDirError
from scaling.laws.analysis import Analysis, FittedForm
from scaling.laws.downstream import DownstreamFit
from scaling.laws.forecast import Law
from scaling.laws.forms import form_named
from scaling.laws.intervals import percentile_interval
from scaling.laws.isoflop import IsoFlop
from scaling.laws.points import Definitions
from scaling.runs.files import read_object, write_json

FORMAT = 1
FILE = "fit.json"


def to_json(analysis: Analysis) -> dict[str, Any]:
    """Plain JSON values, with every draw and residual."""
    points = analysis.points
    found: dict[str, Any] = {
        "format": FORMAT,
        "options": analysis.options.model_dump(),
        "definitions": asdict(points.definitions),
        "points": {
            name: getattr(points, name)
            for name in ("n_params", "n_tokens", "flops", "loss", "runs", "names")
        },
        "excluded": [asdict(excluded) for excluded in points.excluded],
        "forms": {name: _form(fitted) for name, fitted in analysis.forms.items()},
        "isoflop": {axis: _isoflop(fitted) for axis, fitted in analysis.isoflop.items()},
        "refused": analysis.refused,
        "base": None if points.base is None else points.base.model_dump(mode="json"),
    }
    if analysis.envelope is not None:
        found["envelope"] = vars(analysis.envelope) | {
            "interval": percentile_interval(analysis.envelope.exponents)
        }
    if (repeated := analysis.repeated) is not None:
        found["repeated"] = {
            "R*_D": repeated.r_d,
            "R*_N": repeated.r_n,
            "intervals": [repeated.interval(0), repeated.interval(1)],
            "base": repeated.base.parameters,
            "objective": repeated.objective,
            "draws": repeated.draws,
            "notes": repeated.notes,
        }
    if analysis.downstream:
        found["downstream"] = {
            fit.curve: {
                "parameters": fit.parameters,
                "p": fit.p,
                "draws": fit.draws,
                "rms": fit.rms,
            }
            for fit in analysis.downstream
        }
    plain = _plain(found)
    assert isinstance(plain, dict)
    return plain


def write(analysis: Analysis, directory: Path) -> Path:
    """Write fit.json, atomically; returns its path. Raises RunDirError."""
    path = directory / FILE
    write_json(path, to_json(analysis))
    return path


def read(place: Path) -> dict[str, Any]:
    """Read fit.json. `place` is the file, its directory, or a study that holds it. Raises
    ConfigError or DataError."""
    path = place / FILE if place.is_dir() else place
    if not path.exists() and (place / "laws" / FILE).exists():
        path = place / "laws" / FILE
    try:
        found = read_object(path)
    except RunDirError as error:
        raise DataError(error.what, "fit", "Fit again with python -m scaling.fit.") from error
    if found is None:
        raise ConfigError(
            f"there is no {path}",
            "fit",
            "Fit first: python -m scaling.fit table=FILE.csv ..., then give its directory.",
        )
    if found.get("format") != FORMAT:
        raise DataError(f"{path} is not of format {FORMAT}", "fit", "Fit again with this version.")
    return found


def law_of(found: Mapping[str, Any], name: str) -> Law:
    """The law of one form in a stored analysis. Raises ConfigError when it was not fitted."""
    forms = found["forms"]
    if name not in forms:
        raise ConfigError(
            f"form={name} was not fitted", "form", f"There are: {', '.join(forms) or 'none'}."
        )
    stored, form = forms[name], form_named(name)
    n, d, c = (_array(found["points"][key]) for key in ("n_params", "n_tokens", "flops"))
    return Law(
        form=form,
        theta=np.array(stored["theta"]),
        draws=np.array(stored["draws"]).reshape(-1, form.n_params),
        residuals=np.array(stored["residuals"]),
        definitions=Definitions(**found["definitions"]),
        smallest=(float(n.min()), float(d.min()), float(c.min())),
        largest=(float(n.max()), float(d.max()), float(c.max())),
    )


def downstream_of(found: Mapping[str, Any]) -> list[DownstreamFit]:
    """The curves from loss to metric in a stored analysis."""
    return [
        DownstreamFit(
            curve,
            stored["parameters"],
            np.array(stored["p"]),
            np.array(stored["draws"]),
            stored["rms"],
        )
        for curve, stored in found.get("downstream", {}).items()
    ]


def _form(fitted: FittedForm) -> dict[str, Any]:
    fit, drawn = fitted.fit, fitted.bootstrap
    intervals = {
        name: percentile_interval(values) for name, values in fit.form.reported(drawn.theta).items()
    }
    return {
        "equation": fit.form.equation,
        "source": fit.form.source,
        "delta": fit.delta,
        "objective": fit.objective,
        "parameters": fit.parameters,
        "intervals": intervals,
        "theta_names": fit.form.names,
        "theta": fit.theta,
        "minima": fit.minima,
        "minima_objectives": fit.minima_objectives,
        "gradient_norm": fit.gradient_norm,
        "condition": fit.condition,
        "at_bound": fit.at_bound,
        "warnings": fitted.warnings,
        "profiles": [vars(profile) for profile in fitted.profiles],
        "sensitivity": [vars(variant) for variant in fitted.sensitivity],
        "held_out": [
            vars(cut) | {"mean_error": cut.mean_error, "max_error": cut.max_error}
            for cut in fitted.held_out
        ],
        "residuals": fit.residuals,
        "draws": drawn.theta,
    }


def _isoflop(fitted: IsoFlop) -> dict[str, Any]:
    return vars(fitted) | {
        "interval": percentile_interval(fitted.exponents),
        "curves": [vars(curve) for curve in fitted.curves],
        "left_out": [asdict(excluded) for excluded in fitted.left_out],
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def _array(values: list[float | None]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([math.nan if value is None else value for value in values], dtype=float)
