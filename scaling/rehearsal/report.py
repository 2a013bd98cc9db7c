"""What the drill has found: two tables on the screen, and a file."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from scaling.config.run_config import RunConfig
from scaling.rehearsal.compare import Comparison
from scaling.rehearsal.outcome import Kill
from scaling.runs.goodput import Seconds
from scaling.units import format_duration

TOLERANCE = {"fp32": 2e-3, "bf16": 5e-2}
"""Relative tolerance of losses where world sizes change or the hardware does not repeat itself:
sums in another order, and what training makes of that over the run. Assumption; short runs measured
1e-7 in fp32 (docs/reliability.md)."""
NORM_TOLERANCE = 5.0
"""Tolerance of gradient norms, times that of losses: a norm follows single batches more closely
than the loss does. Assumption."""


@dataclass(frozen=True)
class Report:
    """command: the arguments of the run. world_sizes: those that the killed run had. allowed,
    allowed_norms: relative difference of losses and of gradient norms; 0 asks for equality bit for
    bit.
    """

    command: list[str]
    seed: int
    n_kills_wanted: int
    kills: list[Kill]
    resizes: list[Kill]
    starts: int
    world_sizes: list[int]
    comparison: Comparison
    allowed: float
    seconds: Seconds
    goodput: float | None
    goodput_unbroken: float | None

    @property
    def allowed_norms(self) -> float:
        return NORM_TOLERANCE * self.allowed

    @property
    def passed(self) -> bool:
        found = self.comparison
        near = found.max_relative <= self.allowed and found.max_norm_relative <= self.allowed_norms
        alike = found.identical if self.allowed == 0 else near and not found.numbers_unmatched
        whole = not (
            found.sequences_repeated
            or found.sequences_skipped
            or found.steps_missing
            or found.steps_repeated
        )
        return alike and whole and len(self.kills) == self.n_kills_wanted

    def to_dict(self) -> dict[str, Any]:
        found = asdict(self) | {
            "allowed_norms": self.allowed_norms,
            "lost": lost_by_kind(self.kills),
            "passed": self.passed,
        }
        return {name: _plain(value) for name, value in found.items()}


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def allowed_difference(config: RunConfig, world_sizes: Sequence[int]) -> float:
    """None at all on CPUs with one world size throughout."""
    if config.cluster.device.kind == "cpu" and len(set(world_sizes)) <= 1:
        return 0.0
    return TOLERANCE[config.dtype]


def print_report(console: Console, report: Report, path: str) -> None:
    console.print(_kills_table(report))
    found = report.comparison
    table = Table(
        box=box.HORIZONTALS,
        show_header=False,
        title="Rehearsal",
        title_justify="left",
        title_style="bold",
    )
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    rows = {
        "steps compared": f"{found.steps}, missing {found.steps_missing}, "
        f"recorded twice {found.steps_repeated}",
        "sequences repeated": str(found.sequences_repeated),
        "sequences skipped": str(found.sequences_skipped),
        **_differences(report),
        "kills": f"{len(report.kills)} of {report.n_kills_wanted}, seed {report.seed}",
        "world sizes": ", ".join(_runs(report.world_sizes)),
        "time": ", ".join(
            f"{name} {format_duration(spent_s)}"
            for name, spent_s in report.seconds.items()
            if spent_s >= 0.05
        ),
        "goodput": f"{_share(report.goodput)}, unbroken {_share(report.goodput_unbroken)}",
        "report": path,
        "verdict": "passed" if report.passed else "FAILED",
    }
    for name, text in rows.items():
        table.add_row(name, text)
    console.print(table, markup=False, highlight=False)


def _differences(report: Report) -> dict[str, str]:
    found = report.comparison
    if found.identical:
        return {"loss difference": "none: losses and gradient norms are equal bit for bit"}
    losses, norms = (
        f"{relative:.3g} relative (allowed: {f'{allowed:g}' if allowed else 'equality'})"
        for relative, allowed in (
            (found.max_relative, report.allowed),
            (found.max_norm_relative, report.allowed_norms),
        )
    )
    rows = {
        "loss difference": f"{found.max_difference:.3g}, {losses}",
        "gradient norm difference": norms,
    }
    if found.numbers_unmatched:
        rows["in one run alone"] = f"{found.numbers_unmatched} losses and gradient norms"
    return rows


def _runs(sizes: Sequence[int]) -> list[str]:
    """[2, 2, 1] as "2 (2 starts)", "1"."""
    groups = [(size, len(list(same))) for size, same in itertools.groupby(sizes)]
    return [f"{size} ({count} starts)" if count > 1 else f"{size}" for size, count in groups]


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1%}"


def lost_by_kind(kills: Sequence[Kill]) -> dict[str, dict[str, float | int | None]]:
    """Kills of each kind and of all: how many, how many were never missed, and the median and most
    seconds that the others cost."""
    groups: dict[str, list[Kill]] = defaultdict(list)
    for kill in sorted(kills, key=lambda kill: kill.kind):
        groups[kill.kind].append(kill)
    groups["all"] = list(kills)
    return {kind: _lost(some) for kind, some in groups.items()}


def _lost(kills: Sequence[Kill]) -> dict[str, float | int | None]:
    lost = [kill.lost_s for kill in kills if kill.lost_s is not None]
    return {
        "times": len(kills),
        "not_missed": len(kills) - len(lost),
        "median_s": round(median(lost), 2) if lost else None,
        "max_s": max(lost, default=None),
    }


def _kills_table(report: Report) -> Table:
    table = Table(
        "killed",
        "times",
        "not missed",
        "lost, median",
        "lost, most",
        box=box.SIMPLE_HEAD,
        header_style="bold",
    )
    rows = lost_by_kind(report.kills)
    if report.resizes:
        rows |= {"resized, by SIGTERM": _lost(report.resizes)}
    for kind, row in rows.items():
        times = [
            "-" if row[name] is None else f"{row[name]:.1f} s" for name in ("median_s", "max_s")
        ]
        table.add_row(kind, str(row["times"]), str(row["not_missed"]), *times)
    return table
