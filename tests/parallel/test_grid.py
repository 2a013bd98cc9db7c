"""The grid of devices: which ranks differ along one axis alone."""

import pytest

from scaling.parallel.grid import Axis, Ranks
from scaling.planner.layout import Layout

GRID = {"tp": 2, "cp": 3, "pp": 4}  # and dp=5
WORLD = 2 * 3 * 4 * 5


@pytest.mark.parametrize("axis", [Axis.TP, Axis.CP, Axis.DP, Axis.PP])
def test_the_groups_of_an_axis_differ_along_it_alone(axis: Axis) -> None:
    ranks = [Ranks(rank, WORLD, 0).laid_out(**GRID) for rank in range(WORLD)]
    groups = list(ranks[0].axis(axis))
    assert sorted(rank for group in groups for rank in group) == list(range(WORLD))
    for group in groups:
        places = [
            {name: getattr(ranks[rank], f"{name}_rank") for name in ("tp", "cp", "dp", "pp")}
            for rank in group
        ]
        assert [place.pop(axis.value) for place in places] == list(range(ranks[0].degree(axis)))
        assert all(place == places[0] for place in places)


def test_replicas_are_dp_and_cp_as_one_axis() -> None:
    ranks = [Ranks(rank, WORLD, 0).laid_out(**GRID) for rank in range(WORLD)]
    for group in ranks[0].axis(Axis.REPLICAS):
        assert len(group) == 15
        assert len({(ranks[rank].tp_rank, ranks[rank].pp_rank) for rank in group}) == 1
        assert [ranks[rank].replica for rank in group] == list(range(15))


def test_a_layout_names_its_degrees() -> None:
    with pytest.raises(TypeError, match="positional"):
        Layout(8, 1, 1, 1, 1, 64, "none", "deepspeed")  # type: ignore[misc, call-arg]
