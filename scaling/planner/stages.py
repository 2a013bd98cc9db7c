"""Where a pipeline is cut: stages of consecutive blocks, as equal in counted FLOPs as whole blocks
allow."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from scaling.config.run_config import RunConfig
from scaling.errors import PlanError
from scaling.planner.cost.counts import block_flops, head_flops
from scaling.units import counted


def stage_bounds(config: RunConfig, n_stages: int) -> list[tuple[int, int]]:
    """The half-open range of global block indices of each stage, an encoder's blocks before its
    decoder's.

    The largest stage is as small as it can be, its share of the head included, which the last one
    has. Raises PlanError where there are fewer blocks than stages.
    """
    costs = block_flops(config)
    if not 1 <= n_stages <= len(costs):
        raise PlanError(
            f"{counted(n_stages, 'pipeline stage')} cannot be cut "
            f"from {counted(len(costs), 'block')}",
            f"model={config.model.name}, layout.pp",
            f"Use pp so that there are at most {counted(len(costs), 'stage')}, and at least one.",
        )
    return balanced(costs, n_stages, after_last=head_flops(config))


def balanced(
    costs: Sequence[float], n_parts: int, *, after_last: float = 0.0
) -> list[tuple[int, int]]:
    """Cut `costs` into consecutive parts that are not empty, `after_last` being added to the last
    one.

    Of all cuts with the least largest part, the one with the least sum of squares: the others are
    even too. Exact, in O(n_parts x len(costs)^2).
    """
    costs = [*costs[:-1], costs[-1] + after_last]
    sums = [0.0, *accumulate(costs)]
    least = _cut(sums, n_parts, float("inf"), squared=False)[0]
    # Sums round: without slack the best cut itself could be over the limit.
    return _cut(sums, n_parts, least * (1 + 1e-12), squared=True)[1]


def _cut(
    sums: Sequence[float], n_parts: int, most: float, *, squared: bool
) -> tuple[float, list[tuple[int, int]]]:
    """Best value and bounds, by dynamic programming over (parts, end): of parts of at most `most`,
    the least sum of squares, or the least largest part."""
    n = len(sums) - 1
    best: list[float] = [0.0] + [float("inf")] * n
    starts: list[list[int]] = []
    for part in range(1, n_parts + 1):
        found: list[float] = [float("inf")] * (n + 1)
        start_of = [0] * (n + 1)
        # At least one cost is left for each part before this one, and for each after it.
        for end in range(part, n - (n_parts - part) + 1):
            for start in range(part - 1, end):
                cost = sums[end] - sums[start]
                value = best[start] + cost**2 if squared else max(best[start], cost)
                if cost <= most and value < found[end]:
                    found[end], start_of[end] = value, start
        best = found
        starts.append(start_of)
    bounds: list[tuple[int, int]] = []
    end = n
    # The cuts are read backwards, from the end of the last part.
    for start_of in reversed(starts):
        bounds.append((start_of[end], end))
        end = start_of[end]
    return best[n], bounds[::-1]
