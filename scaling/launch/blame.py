"""The verdict on a group of workers that failed: which rank was the first cause."""

from __future__ import annotations

from dataclasses import dataclass

from scaling.channel.messages import Crashed, Hung, Lost


@dataclass(frozen=True)
class Trouble:
    """What ended a group of workers. kind: crashed, hung or lost. ranks: those at fault; none where
    that is unknown.

    text: a sentence for people; fix: where to look further.
    """

    kind: str
    ranks: list[int]
    text: str
    fix: str


class Troubles:
    """Collects the reports of one group: Crashed and Hung from the ranks, Lost from the
    launcher."""

    def __init__(self, world_size: int) -> None:
        self._all = set(range(world_size))
        self._crashed: list[Crashed] = []
        self._hung: list[Hung] = []
        self._lost: set[int] = set()

    def add(self, report: Crashed | Hung | Lost) -> None:
        if isinstance(report, Lost):
            self._lost |= set(report.ranks)
        elif isinstance(report, Crashed):
            self._crashed.append(report)
        else:
            self._hung.append(report)

    @property
    def complete(self) -> bool:
        """Whether every rank has reported."""
        return not self._silent

    @property
    def _silent(self) -> set[int]:
        crashed = {report.rank for report in self._crashed}
        return self._all - crashed - {report.rank for report in self._hung}

    def verdict(self) -> Trouble | None:
        """The first cause; None where there is no trouble.

        A rank with an error of its own comes before one that hangs, this before one that ended
        without a report, and a rank that only noticed that another has gone comes last.
        """
        own = [report for report in self._crashed if not report.consequence]
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
                f"{_ranks(gone)} ended without an error: killed, out of memory, "
                "or its machine is gone",
                "The kernel's log (dmesg) lists processes that were killed for their memory.",
            )
        return _crash(self._crashed[0]) if self._crashed else None

    def _hang(self) -> Trouble:
        """The rank that answers nothing; else the one furthest behind; among equals, one that does
        not only wait for others.
        """
        stacks = ", ".join(
            report.stacks for report in sorted(self._hung, key=lambda report: report.rank)
        )
        fix = (
            f"The stacks of the ranks that answer are in {stacks}. "
            "If steps may take that long, set cluster.hang_s higher."
        )
        first = min(self._hung, key=_advance)
        still = f"no step for {first.still_s:.0f} s after step {first.step}"
        silent = sorted(self._silent)
        if silent:
            return Trouble(
                "hung", silent, f"{_ranks(silent)} hangs and answers nothing ({still})", fix
            )
        ranks = sorted(report.rank for report in self._hung if _advance(report) == _advance(first))
        if len(ranks) == len(self._all) > 1:
            return Trouble(
                "hung",
                [],
                f"all ranks hang, {first.doing} step {first.step + 1} ({still})",
                fix,
            )
        where = f"{first.doing} step {first.step + 1}, at {first.where}"
        return Trouble("hung", ranks, f"{_ranks(ranks)} hangs {where} ({still})", fix)


def _advance(report: Hung) -> tuple[int, int, bool]:
    """How far a rank has come: the smallest is furthest behind."""
    return report.step, report.phase, report.waiting


def _crash(report: Crashed) -> Trouble:
    fix = f"Its traceback is in {report.traceback}."
    return Trouble("crashed", [report.rank], f"rank {report.rank} failed: {report.error}", fix)


def _ranks(ranks: list[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    names = ", ".join(str(rank) for rank in ranks[:8])
    return f"{len(ranks)} ranks ({names}{', ...' if len(ranks) > 8 else ''})"
