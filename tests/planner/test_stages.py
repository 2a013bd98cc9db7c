"""Stages of a pipeline: whole, consecutive, and as equal as blocks allow."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.errors import PlanError
from scaling.planner.cost.counts import block_flops, flops_per_sequence, head_flops
from scaling.planner.stages import balanced, stage_bounds
from tests.support.configs import composed


@given(st.lists(st.integers(1, 50), min_size=1, max_size=9), st.integers(1, 9), st.integers(0, 60))
def test_the_largest_stage_is_as_small_as_can_be(costs: list[int], n_parts: int, head: int) -> None:
    n_parts = min(n_parts, len(costs))
    whole = [*costs[:-1], costs[-1] + head]
    bounds = balanced(costs, n_parts, after_last=head)
    assert [bounds[0][0], bounds[-1][1]] == [0, len(costs)]
    assert all(before[1] == after[0] for before, after in pairwise(bounds))
    assert all(start < end for start, end in bounds)
    cuts = ((0, *cut, len(costs)) for cut in combinations(range(1, len(costs)), n_parts - 1))
    least = min(max(sum(whole[a:b]) for a, b in pairwise(cut)) for cut in cuts)
    assert max(sum(whole[a:b]) for a, b in bounds) == least


def test_equal_blocks_are_dealt_evenly() -> None:
    assert sorted(end - start for start, end in balanced([1.0] * 10, 4)) == [2, 2, 3, 3]


@pytest.mark.parametrize("model", ["gpt_125m", "bert_base", "t5_small"])
def test_blocks_and_head_are_what_a_step_counts(model: str) -> None:
    config = composed(f"model={model}")
    total = sum(block_flops(config)) + head_flops(config)
    assert total == pytest.approx(flops_per_sequence(config), rel=1e-9)


def test_the_head_takes_blocks_from_the_last_stage() -> None:
    bounds = stage_bounds(composed("model=gpt_125m"), 2)
    assert bounds[0][1] - bounds[0][0] > bounds[1][1] - bounds[1][0]


def test_more_stages_than_blocks_are_refused() -> None:
    with pytest.raises(PlanError, match="cannot be cut from 4 blocks"):
        stage_bounds(composed(), 5)
