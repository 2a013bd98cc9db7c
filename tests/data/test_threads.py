"""Which workers a run may leave to the next one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from scaling.composition.compose import compose
from scaling.launch.ray import pool as pools
from scaling.launch.ray.pool import Slot, WorkerPool
from scaling.launch.ray.warm_worker import Location
from scaling.planner.layout import Layout

ZERO_1 = Layout(
    dp=2,
    tp=1,
    pp=1,
    zero_stage=1,
    micro_batch_size=4,
    grad_accum_steps=1,
    activation_checkpointing="none",
    engine="deepspeed",
)


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The workers that were ended, where none is more than a name; runs are told to be over by what
    `launch` returns."""
    import ray

    gone: list[Any] = []
    monkeypatch.setattr(ray, "kill", lambda actor, no_restart: gone.append(actor))
    monkeypatch.setattr(pools, "meeting_address", lambda *_: "")
    monkeypatch.setattr(pools, "GroupLaunch", lambda *args: args[5])
    monkeypatch.setattr(WorkerPool, "_start", lambda _: Slot("fresh", "warming"))
    return gone


@pytest.mark.parametrize(
    ("layout", "sound", "replaced"),
    [
        (ZERO_1, True, False),
        (ZERO_1, False, True),
        (replace(ZERO_1, zero_stage=3), True, True),
        (replace(ZERO_1, zero_stage=0, engine="ddp"), True, False),
    ],
)
def test_a_worker_serves_again_where_nothing_is_left_in_it(
    layout: Layout, sound: bool, replaced: bool, ended: list[Any]
) -> None:
    pool = WorkerPool(compose(["train.n_tokens=1M"]).cluster, 2)
    slots = [
        Slot(name, None, Location("node", "here", ""), device=name) for name in ("first", "second")
    ]
    over: Callable[[bool], None] = pool.launch(lambda *_: {}, {}, layout, slots)  # type: ignore[assignment]
    assert all(slot.busy for slot in slots)
    over(sound)
    assert not any(slot.busy for slot in slots)
    assert ended == (["first", "second"] if replaced else [])
    assert [slot.actor for slot in slots] == (
        ["fresh", "fresh"] if replaced else ["first", "second"]
    )
