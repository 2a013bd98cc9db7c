"""What failing ranks report to their driver."""

from __future__ import annotations

from scaling.channel.messages import Crashed, Hung
from scaling.train.control import COMPUTING, PHASES

GLOO = (
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] "
    "Connection closed by peer [127.0.0.1]:3412"
)
"""What a rank meets when another has gone."""


def crashed(rank: int, error: str, *, consequence: bool) -> Crashed:
    return Crashed(rank, error, f"rank-{rank}.txt", consequence)


def hung(rank: int, *, step: int = 7, phase: str = COMPUTING, waiting: bool = True) -> Hung:
    return Hung(
        rank=rank,
        step=step,
        phase=PHASES.index(phase),
        doing=phase,
        still_s=61.4,
        where="loop.py:12",
        waiting=waiting,
        stacks=f"hang-{rank}.txt",
    )
