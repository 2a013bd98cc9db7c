"""A scale of one's own machine, from rows or a run that were measured on it: how much slower it is than predicted."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from scaling.errors import PlanError
from scaling.plan.constants import CONSTANTS, Constants
from scaling.plan.predict import predict_case
from scaling.plan.table import Case, read_cases


def time_scale(cases: Sequence[Case], constants: Constants = CONSTANTS) -> float:
    """Predicted over measured rate of a machine, from some of its rows: a factor on predicted times. Raises PlanError without a
    rate.

    Their median is trusted as far as machines differ by more than the rows of one scatter: with one row a factor of
    between^2 / (between^2 + within^2) of its logarithm, with many nearly all (the posterior mean of normal errors).
    """
    logs = [
        math.log(predicted / case.tokens_per_s_per_device)
        for case in cases
        if case.tokens_per_s_per_device and (predicted := predict_case(case, constants).tokens_per_s_per_device)
    ]
    if not logs:
        raise PlanError("no row holds tokens_per_s_per_gpu", "plan.calibrate", "Give at least one measured row.")
    trust = constants.between**2 / (constants.between**2 + constants.within**2 / len(logs))
    return math.exp(trust * statistics.median(logs))


def scale_of(path: Path) -> float:
    """Of a table in the columns of `scaling.plan.score`, or of a finished run's directory. Raises PlanError, DataError."""
    return _scale_of_run(path) if path.is_dir() else time_scale(read_cases(path))


def _scale_of_run(run_dir: Path) -> float:
    """Predicted over measured tokens a second, of plan.json and summary.json."""
    try:
        predicted = json.loads((run_dir / "plan.json").read_text())["time"]["tokens_per_s"]
        measured = json.loads((run_dir / "summary.json").read_text())["tokens_per_s"]
        return float(predicted) / float(measured)
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise PlanError(
            f"plan.calibrate={run_dir} holds no predicted and measured rate ({type(error).__name__})",
            None,
            "Give the directory of a finished run whose plan has a time, or a table of measured rows.",
        ) from error
