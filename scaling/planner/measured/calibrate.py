"""A scale of one's own machine, from rows or runs that were measured on it: how much slower it is
than predicted."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scaling.config.run_config import RunConfig
from scaling.errors import PlanError
from scaling.planner.cost.constants import CONSTANTS, Constants
from scaling.planner.measured.table import Case, read_cases
from scaling.planner.prediction import predict_case
from scaling.runs.files import write_json

FROM_RUNS = "calibration.json"
"""File in run.root that holds the rates of runs with plan.calibrate_from_run=true."""


def time_scale(cases: Sequence[Case], constants: Constants = CONSTANTS) -> float:
    """Predicted over measured rate of a machine, from some of its rows: a factor on predicted
    times. Raises PlanError without a rate.

    Their median is trusted as far as machines differ by more than the rows of one scatter: with one
    row a factor of between^2 / (between^2 + within^2) of its logarithm, with many nearly all (the
    posterior mean of normal errors).
    """
    logs = [
        math.log(predicted / case.tokens_per_s_per_device)
        for case in cases
        if case.tokens_per_s_per_device
        and (predicted := predict_case(case, constants).tokens_per_s_per_device)
    ]
    if not logs:
        raise PlanError(
            "no row holds tokens_per_s_per_gpu", "plan.calibrate", "Give at least one measured row."
        )
    trust = constants.between**2 / (constants.between**2 + constants.within**2 / len(logs))
    return math.exp(trust * statistics.median(logs))


def scale_of(config: RunConfig) -> float:
    """What `plan.calibrate` says of the configuration's devices; 1 where it is null. Raises
    PlanError, DataError.

    A table in the columns of `scaling.planner.measured.score`; or of runs of one's own, whose rate
    is taken as it is, the directory of a finished one, or the file that `plan.calibrate_from_run`
    adds to.
    """
    if config.plan.calibrate is None:
        return 1.0
    path = Path(config.plan.calibrate).expanduser()
    if not path.exists():
        raise PlanError(
            f"there is no {path}",
            "plan.calibrate",
            "Give a table, a run's directory or a calibration.json.",
        )
    if path.is_dir():
        return _scale_of_run(path)
    if path.suffix == ".json":
        return _scale_of_runs(path, config.cluster.device.name)
    return time_scale(read_cases(path))


def learn(
    config: RunConfig, *, run: str, n_devices: int, predicted: float, measured: float
) -> tuple[Path, float]:
    """Add a run's tokens a second to the file of this machine; returns it and the scale that it now
    says. `predicted`: without any scale. Raises PlanError where the file is no such file."""
    given = config.plan.calibrate
    path = Path(
        given if given and given.endswith(".json") else f"{config.run.root}/{FROM_RUNS}"
    ).expanduser()
    device = config.cluster.device.name
    entry = {
        "run": run,
        "device": device,
        "n_devices": n_devices,
        "predicted_tokens_per_s": predicted,
        "measured_tokens_per_s": measured,
        "planner": _fingerprint(),
    }
    known = [one for one in _entries(path) if one["run"] != run] if path.exists() else []
    write_json(path, [*known, entry])
    return path, _scale_of_runs(path, device)


def _scale_of_runs(path: Path, device: str) -> float:
    entries = _entries(path)
    here = [one for one in entries if one["device"] == device and one["planner"] == _fingerprint()]
    if not here:
        devices = ", ".join(sorted({str(one["device"]) for one in entries})) or "nothing"
        raise PlanError(
            f"plan.calibrate={path} holds no run on {device} by this version of the planner, "
            f"but on {devices}",
            None,
            "Run once with plan.calibrate_from_run=true on these devices.",
        )
    return statistics.median(
        one["predicted_tokens_per_s"] / one["measured_tokens_per_s"] for one in here
    )


def _entries(path: Path) -> list[dict[str, Any]]:
    try:
        entries = json.loads(path.read_text())
        for entry in entries:
            assert (
                float(entry["predicted_tokens_per_s"]) > 0 < float(entry["measured_tokens_per_s"])
            )
            assert {"run", "device", "planner"} <= entry.keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise PlanError(
            f"plan.calibrate={path} is no file of measured runs ({type(error).__name__})",
            None,
            "Give a file that plan.calibrate_from_run=true wrote, a finished run's directory, "
            "or a CSV table.",
        ) from error
    return list(entries)


def _fingerprint() -> str:
    """A hash of the constants with which a rate was predicted."""
    return hashlib.sha256(repr(CONSTANTS).encode()).hexdigest()[:8]


def _scale_of_run(run_dir: Path) -> float:
    """Predicted over measured tokens a second, of plan.json and summary.json."""
    try:
        plan = json.loads((run_dir / "plan.json").read_text())
        measured = json.loads((run_dir / "summary.json").read_text())["tokens_per_s"]
        return float(plan["time"]["tokens_per_s"]) * float(plan["time_scale"]) / float(measured)
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise PlanError(
            f"plan.calibrate={run_dir} holds no predicted and measured rate "
            f"({type(error).__name__})",
            None,
            "Give the directory of a finished run whose plan has a time, or a table of "
            "measured rows.",
        ) from error
