"""What the pictures of docs/parallelism.md are drawn from."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.config.cluster import PipelineSchedule
from scaling.planner.cost.memory_model import in_flight
from scaling.planner.cost.time_model import bubble_s
from scaling.planner.layout import Layout

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools" / "pictures"))

import parallelism  # noqa: E402
from schedule import Work, bubble, followed, waited  # noqa: E402

SCHEDULES: list[PipelineSchedule] = ["1f1b", "dualpipev"]


@given(st.sampled_from(SCHEDULES), st.integers(1, 6), st.integers(0, 12))
def test_a_schedule_takes_every_micro_batch_through_every_stage_and_back(
    kind: PipelineSchedule, p: int, more: int
) -> None:
    m = more + (2 * p if kind == "dualpipev" else 1)
    work = followed(kind, p, m)
    n_stages = max(piece.stage for piece in work) + 1
    assert n_stages == (2 * p if kind == "dualpipev" else p)
    found = {(piece.stage, piece.kind, piece.micro_batch): piece for piece in work}
    assert len(found) == len(work) == 2 * n_stages * m
    for (stage, passing, number), piece in found.items():
        before = (
            (stage - 1, passing, number) if passing == "forward" else (stage + 1, passing, number)
        )
        if before in found:
            assert found[before].end <= piece.start
        elif passing == "backward":
            assert found[stage, "forward", number].end <= piece.start
    for rank in range(p):
        own = sorted((piece for piece in work if piece.rank == rank), key=lambda piece: piece.start)
        assert all(one.end <= other.start for one, other in pairwise(own))


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("p", [2, 3, 4, 8])
@pytest.mark.parametrize("ratio", [1.0, 2.0, 2.5, 3.0])
def test_what_a_schedule_waits_and_keeps_is_what_the_planner_says(
    kind: PipelineSchedule, p: int, ratio: float
) -> None:
    for m in (2 * p, 5 * p):
        layout = Layout(
            dp=1,
            tp=1,
            pp=p,
            zero_stage=1,
            micro_batch_size=1,
            grad_accum_steps=m,
            activation_checkpointing="none",
            engine="deepspeed",
            pp_schedule=kind,
        )
        per_rank = layout.n_stages // p
        work = followed(kind, p, m, forward=1.0, backward=ratio)
        assert waited(work) == pytest.approx(
            bubble_s(layout, per_rank * (1 + ratio), per_rank * ratio)
        )
        assert _most_in_flight(
            [piece for piece in work if piece.rank == 0]
        ) / per_rank == in_flight(layout)
        if ratio == 2.0:
            assert bubble(work) == pytest.approx(layout.bubble_share)


def test_the_bubble_of_1f1b_is_the_published_one() -> None:
    assert bubble(followed("1f1b", 4, 16)) == pytest.approx((4 - 1) / (16 + 4 - 1))


def _most_in_flight(own: list[Work]) -> int:
    held = [0]
    for piece in sorted(own, key=lambda piece: piece.start):
        held.append(held[-1] + (1 if piece.kind == "forward" else -1))
    return max(held)


def test_every_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name, draw in parallelism.PICTURES.items():
        draw().save(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 20_000
        assert (ROOT / "docs" / "images" / f"{name}.png").is_file()
