"""Which rank was the first to fail, out of what the ranks, and Ray, have told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Report = dict[str, Any]


@dataclass(frozen=True)
class Trouble:
    """What ended a group of workers. kind: crashed, hung or lost. ranks: those at fault; none where
    nobody can tell.

    text: a sentence for people; fix: where to look further.
    """

    kind: str
    ranks: list[int]
    text: str
    fix: str


class Troubles:
    """Collects reports of one group of workers: "crashed" and "hung" of ranks themselves, "lost" of
    Ray."""

    def __init__(self, world_size: int) -> None:
        self._all = set(range(world_size))
        self._crashed: list[Report] = []
        self._hung: list[Report] = []
        self._lost: set[int] = set()

    def add(self, kind: str, report: Report) -> None:
        if kind == "lost":
            self._lost |= set(report["ranks"])
        else:
            (self._crashed if kind == "crashed" else self._hung).append(report)

    @property
    def complete(self) -> bool:
        """Whether no rank is left that could still say something."""
        return not self._silent

    @property
    def _silent(self) -> set[int]:
        return self._all - {report["rank"] for report in self._crashed + self._hung}

    def verdict(self) -> Trouble | None:
        """The first cause; None where there is no trouble.

        A rank that crashed of itself comes before one that hangs, this before one that ended
        without a word, and a rank that only noticed that another has gone comes last.
        """
        own = [report for report in self._crashed if not report["consequence"]]
        if own:
            return _crash(own[0])
        if self._hung:
            return self._hang()
        # A process whose machine's Ray has gone may live long enough to notice that the others end.
        gone = sorted(
            (self._lost & self._silent) or self._lost or (self._silent if self._crashed else set())
        )
        if gone:
            return Trouble(
                "lost",
                gone,
                f"{_ranks(gone)} ended without an error: killed, out of memory, or its machine is gone",
                "The kernel's log (dmesg) tells of processes that were killed for their memory.",
            )
        return _crash(self._crashed[0]) if self._crashed else None

    def _hang(self) -> Trouble:
        """Who answers nothing at all; else who is furthest behind; of equals, those that do not
        just wait for others."""
        stacks = ", ".join(
            str(report["stacks"])
            for report in sorted(self._hung, key=lambda report: report["rank"])
        )
        fix = f"The stacks of the ranks that answer are in {stacks}. If steps may take that long, set cluster.hang_s higher."
        first = min(
            self._hung, key=lambda report: (report["step"], report["place"], report["waiting"])
        )
        still = f"no step for {first['still_s']:.0f} s after step {first['step']}"
        silent = sorted(self._silent)
        if silent:
            return Trouble(
                "hung", silent, f"{_ranks(silent)} hangs and answers nothing ({still})", fix
            )
        behind = [
            report
            for report in self._hung
            if (report["step"], report["place"], report["waiting"])
            == (first["step"], first["place"], first["waiting"])
        ]
        ranks = sorted(report["rank"] for report in behind)
        if len(ranks) == len(self._all) > 1:
            return Trouble(
                "hung",
                [],
                f"all ranks hang, {first['doing']} step {first['step'] + 1} ({still})",
                fix,
            )
        where = f"{first['doing']} step {first['step'] + 1}, at {first['where']}"
        return Trouble("hung", ranks, f"{_ranks(ranks)} hangs {where} ({still})", fix)


def _crash(report: Report) -> Trouble:
    fix = f"Its traceback is in {report['traceback']}."
    return Trouble(
        "crashed", [report["rank"]], f"rank {report['rank']} failed: {report['error']}", fix
    )


def _ranks(ranks: list[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    return f"{len(ranks)} ranks ({', '.join(str(rank) for rank in ranks[:8])}{', ...' if len(ranks) > 8 else ''})"
