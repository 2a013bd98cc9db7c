"""Runs whose devices come and go: which numbers of them are legal, and what a notice leads to."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import pytest

from scaling.channel.base import LocalChannel, Notice
from scaling.config.run_config import RunConfig
from scaling.errors import ConfigError, PlanError
from scaling.planner.cost.failures import hours_between_failures
from scaling.planner.run_plan import make_plan
from scaling.planner.world_sizes import elastic_sizes, with_devices
from scaling.train.control import POLL_S, Clock, Preemption
from scaling.worker.spec import WorkerSpec
from tests.support.configs import composed

STANDING = (
    "cluster=existing",
    "cluster.device.kind=cpu",
    "cluster.device.name=core",
    "cluster.device.memory_gb=12",
)


def standing(n_nodes: int, per_node: int, *overrides: str) -> RunConfig:
    return composed(
        *STANDING, f"cluster.n_nodes={n_nodes}", f"cluster.devices_per_node={per_node}", *overrides
    )


def test_a_run_is_elastic_where_machines_may_go_or_it_is_asked_to_be() -> None:
    assert elastic_sizes(standing(4, 1)) == (4,)
    assert elastic_sizes(standing(4, 1, "cluster.preemptible=true")) == (1, 2, 4), (
        "three ranks cannot share 16 sequences"
    )
    assert elastic_sizes(standing(4, 1, "cluster.min_devices=2")) == (2, 4)
    assert elastic_sizes(standing(1, 4, "cluster.min_devices=1")) == (1, 2, 4), (
        "a single node shrinks by devices"
    )
    assert elastic_sizes(standing(4, 2, "cluster.preemptible=true")) == (2, 4, 8), (
        "several nodes go whole"
    )
    assert elastic_sizes(
        standing(4, 1, "cluster.preemptible=true", "layout=manual", "layout.dp=4")
    ) == (4,)
    assert elastic_sizes(standing(2, 2, "cluster.preemptible=true", "layout=tp2")) == (2, 4)
    assert elastic_sizes(composed()) == (2,)


def test_a_large_model_shrinks_to_what_it_fits_on() -> None:
    config = composed("model=gpt_13b", "cluster=4x8xA100-spot", "cluster.kind=existing")
    sizes = elastic_sizes(config)
    assert sizes[-1] == 32
    assert all(size % 8 == 0 for size in sizes)
    for size in sizes:
        plan = make_plan(with_devices(config, size))
        assert plan.layout.world_size == size
        assert (
            plan.layout.dp * plan.layout.micro_batch_size * plan.layout.grad_accum_steps
            == config.train.global_batch_size
        )


def test_the_same_run_on_other_devices() -> None:
    config = standing(4, 2, "cluster.preemptible=true")
    assert with_devices(config, 8) is config
    smaller = with_devices(config, 4)
    assert (smaller.cluster.n_nodes, smaller.cluster.devices_per_node) == (2, 2)
    assert smaller.semantic_hash == config.semantic_hash
    part = with_devices(config, 1)
    assert (part.cluster.n_nodes, part.cluster.devices_per_node) == (1, 1)


def test_workers_obey_the_plan_and_plan_again_only_after_a_resize(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = standing(4, 2, "cluster.preemptible=true")
    plan, smaller = make_plan(config, time_scale=1.25), make_plan(with_devices(config, 4))
    spec = WorkerSpec(config=config, plan=plan, run_dir="run", corpus_dir="corpus", sizes=(2, 4, 8))
    given = WorkerSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert given == spec
    found, replanned = given.on(4)
    assert found == with_devices(config, 4)
    assert (replanned.layout, replanned.time_scale) == (smaller.layout, 1.25)

    monkeypatch.setattr("scaling.worker.spec.make_plan", refuse)
    assert given.on(8) == (config, plan)
    assert replace(given, sizes=(8,)).on(8) == (config, plan)


def refuse(*args: object, **kwargs: object) -> None:
    raise AssertionError("planned again")


@pytest.mark.parametrize(
    ("overrides", "error", "what"),
    [
        (
            ("cluster.devices_per_node=2", "cluster.min_devices=1"),
            ConfigError,
            "is this machine alone",
        ),
        (
            (*STANDING, "cluster.devices_per_node=2", "cluster.min_devices=3"),
            PlanError,
            "more than the 2 devices",
        ),
        (
            (
                *STANDING,
                "cluster.devices_per_node=2",
                "cluster.min_devices=1",
                "layout=manual",
                "layout.dp=2",
            ),
            ConfigError,
            "the layout fixes how many ranks",
        ),
    ],
)
def test_a_least_number_that_cannot_be_is_refused(
    overrides: tuple[str, ...], error: type[Exception], what: str
) -> None:
    memory = ("cluster.device.name=test CPU", "cluster.device.memory_gb=12")
    with pytest.raises(error, match=what) as caught:
        elastic_sizes(composed(*overrides, *(() if "cluster=existing" in overrides else memory)))
    assert "cluster.min_devices=" in str(caught.value)


@pytest.mark.parametrize("name", ["4x8xA100-spot", "4x8xH100-spot"])
def test_a_spot_cluster_is_elastic_and_forgives_more(name: str) -> None:
    """Whether it has a file of its own or is taken apart by its name."""
    spot = composed(
        f"cluster={name}", "cluster.kind=existing", "cluster.address=head:6379", "model=gpt_1b"
    )
    plain = composed(
        f"cluster={name.removesuffix('-spot')}",
        "cluster.kind=existing",
        "cluster.address=head:6379",
        "model=gpt_1b",
    )
    assert elastic_sizes(spot) == (8, 16, 24, 32), "whole nodes go"
    assert elastic_sizes(plain) == (32,)
    assert (spot.cluster.max_failures, plain.cluster.max_failures) == (20, 2)
    assert spot.cluster.max_preemptions == -1
    assert (
        hours_between_failures(spot.cluster, 32) < hours_between_failures(plain.cluster, 32) / 100
    )
    assert spot.semantic_hash == plain.semantic_hash


def test_rays_policy_takes_legal_numbers_only() -> None:
    from ray.train import ScalingConfig

    from scaling.launch.ray.elastic import LegalSizes

    config: Any = ScalingConfig
    policy = LegalSizes(config(num_workers=(1, 4), resources_per_worker={"CPU": 1.0}), (1, 2, 4))
    room = {"a": {"CPU": 2.0}, "b": {"CPU": 1.0}, "c": {"CPU": 9.0}}
    assert policy._count_possible_workers(room) == 4
    del room["c"]
    assert policy._count_possible_workers(room) == 2
    del room["a"]
    assert policy._count_possible_workers(room) == 1
    assert policy._count_possible_workers({}) == 0


# Notices.


class Watched(LocalChannel):
    """A channel of a rank whose machines somebody watches."""

    watches_machines = True
    told: Notice | None = None

    def notice(self) -> Notice | None:
        return self.told


def preemption(
    channel: LocalChannel, *, world_size: int = 4, sizes: tuple[int, ...] = (1, 2, 4)
) -> tuple[Preemption, list[Any]]:
    events: list[Any] = []
    clock = Clock()
    clock.stepped(1.0)
    found = Preemption(
        channel,
        clock,
        world_size=world_size,
        sizes=sizes,
        grace_s=30.0,
        write_s=lambda: 2.0,
        on_event=lambda kind, **fields: events.append((kind, fields)),
    )
    return found, events


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Any:
    class Now:
        s = 1.79e9

    monkeypatch.setattr(time, "time", lambda: Now.s)
    monkeypatch.setattr(time, "monotonic", lambda: Now.s)
    return Now


def test_nobody_looks_where_nobody_watches(now: Any) -> None:
    ours, _ = preemption(LocalChannel())
    assert not ours.look_wanted
    assert not ours.save_wanted
    assert not ours.ends_run


def test_a_notice_leads_to_a_checkpoint_at_once_and_to_another_just_before(now: Any) -> None:
    channel = Watched()
    ours, events = preemption(channel)
    assert ours.look_wanted
    ours.look()
    assert not ours.look_wanted, "a look is a collective through Ray: not at every step"
    now.s += POLL_S
    assert ours.look_wanted
    channel.told = Notice((3,), now.s + 60)
    ours.look()
    assert events == [("preemption_notice", {"ranks": [3], "left_s": 60.0, "ends_run": False})]
    assert ours.save_wanted
    ours.saved()
    assert not ours.save_wanted
    now.s += 60 - 11 - 0.5
    ours.look()
    assert len(events) == 1, "it is the same notice"
    assert not ours.save_wanted
    now.s += 0.5
    assert ours.save_wanted, (
        "twice a write of 2 s and a step of 1 s, and 5 s, before the machine goes"
    )
    ours.saved()
    assert not ours.save_wanted


def test_a_notice_without_a_deadline_leaves_the_grace_period(now: Any) -> None:
    channel = Watched()
    ours, events = preemption(channel)
    channel.told = Notice((0, 1), None)
    ours.look()
    assert events[0][1]["left_s"] == 30.0
    ours.saved()
    now.s += 30 - 11
    assert ours.save_wanted


@pytest.mark.parametrize(
    ("ranks", "sizes", "ends"),
    [
        ((3,), (4,), True),
        ((3,), (2, 4), False),
        ((1, 2, 3), (2, 4), True),
        ((0, 1, 2, 3), (1, 2, 4), True),
        ((0,), (), True),
    ],
)
def test_a_run_that_too_few_would_stay_for_ends(
    now: Any, ranks: tuple[int, ...], sizes: tuple[int, ...], ends: bool
) -> None:
    channel = Watched()
    ours, _ = preemption(channel, sizes=sizes)
    channel.told = Notice(ranks, None)
    ours.look()
    assert ours.ends_run == ends
