"""What the pictures of docs/parallelism.md are drawn from."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools" / "pictures"))

import parallelism  # noqa: E402
from schedule import Work, bubble, one_forward_one_backward  # noqa: E402


@given(st.integers(1, 7), st.integers(1, 20))
def test_the_schedule_is_1f1b_and_its_bubble_the_formula(p: int, m: int) -> None:
    work = one_forward_one_backward(p, m)
    assert bubble(work) == pytest.approx((p - 1) / (m + p - 1))
    found = {(piece.stage, piece.kind, piece.micro_batch): piece for piece in work}
    assert len(found) == len(work) == 2 * p * m
    for (stage, kind, number), piece in found.items():
        before = (stage - 1, kind, number) if kind == "forward" else (stage + 1, kind, number)
        if before in found:
            assert found[before].end <= piece.start
        elif kind == "backward":
            assert found[stage, "forward", number].end <= piece.start
    for stage in range(p):
        own = sorted((piece for piece in work if piece.stage == stage), key=lambda piece: piece.start)
        assert all(one.end <= other.start for one, other in pairwise(own))
        assert _most_in_flight(own) == min(p - stage, m), "micro-batches whose activations a stage holds"


def _most_in_flight(own: list[Work]) -> int:
    held = [0]
    for piece in own:
        held.append(held[-1] + (1 if piece.kind == "forward" else -1))
    return max(held)


def test_every_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name, draw in parallelism.PICTURES.items():
        draw().save(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 20_000
        assert (ROOT / "docs" / "images" / f"{name}.png").is_file()
