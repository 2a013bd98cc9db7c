"""A checkpoint of any layout is read under any other: parts of any tensor degree, any runs of them
over data-parallel ranks."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.checkpoint import fragments
from scaling.checkpoint.fragments import KINDS, Fragment, FragmentReader, Snapshot
from scaling.errors import CheckpointError
from scaling.parallel.part import Part
from scaling.parallel.rectangles import Run, overlaps

Cuts = list[tuple[Part, int, int]]
"""A tuple for each rank: which part, and where in it the rank's run starts and ends."""


def whole_of(shape: tuple[int, ...], kind: str) -> torch.Tensor:
    return torch.arange(float(prod(shape))).reshape(shape) + 1000 * KINDS.index(kind)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, ...]:
    return tuple(draw(st.lists(st.integers(1, 7), max_size=2)))


def layouts(shape: tuple[int, ...]) -> st.SearchStrategy[Cuts]:
    """Parts along any dim over one to four tensor-parallel ranks, each cut into runs over one to
    four data-parallel ones."""

    @st.composite
    def made(draw: st.DrawFn) -> Cuts:
        parts = [Part.whole(shape)]
        if shape and draw(st.booleans()):
            dim, tp = draw(st.integers(0, len(shape) - 1)), draw(st.integers(1, 4))
            parts = [Part.nth(shape, dim, index, tp) for index in range(tp)]
        ranks = []
        for part in parts:
            bounds = [
                0,
                *sorted(draw(st.lists(st.integers(0, part.numel), max_size=3))),
                part.numel,
            ]
            ranks += [(part, low, high) for low, high in pairwise(bounds)]
        return draw(st.permutations(ranks))

    return made()


def write(directory: Path, shape: tuple[int, ...], cuts: Cuts) -> None:
    for rank, (part, low, high) in enumerate(cuts):
        tensors = {kind: part.of(whole_of(shape, kind)).reshape(-1)[low:high] for kind in KINDS}
        snapshot = Snapshot.of([Fragment("weight", part, low, tensors)], optimizer_step=3)
        snapshot.write(directory / f"rank-{rank:05d}.safetensors")


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_what_one_layout_wrote_another_reads(data: st.DataObject) -> None:
    shape = data.draw(shapes())
    saved, wanted = data.draw(layouts(shape)), data.draw(layouts(shape))
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write(directory, shape, saved)
        reader = FragmentReader(directory)
        reader.check({"weight": shape})
        for part, low, high in wanted:
            for kind in KINDS:
                expected = part.of(whole_of(shape, kind)).reshape(-1)[low:high]
                assert torch.equal(reader.read(kind, "weight", part, low, high - low), expected)

        gone = data.draw(st.integers(0, len(saved) - 1))
        part, low, high = saved[gone]
        (directory / f"rank-{gone:05d}.safetensors").unlink()
        if len(saved) == 1 or low == high:
            return
        with pytest.raises(CheckpointError, match="a rank's file is missing"):
            FragmentReader(directory).read("param", "weight", Part.whole(shape), 0, prod(shape))
        with pytest.raises(CheckpointError, match=f"0 of {high - low} elements found"):
            FragmentReader(directory).read("param", "weight", part, low, high - low)


def test_every_pair_of_layouts_of_a_matrix(tmp_path: Path) -> None:
    shape = (5, 7)
    cuts = [
        [
            (part, part.numel * r // dp, part.numel * (r + 1) // dp)
            for part in parts
            for r in range(dp)
        ]
        for parts in (
            [Part.nth(shape, dim, r, tp) for r in range(tp)] for dim in range(2) for tp in (1, 2, 3)
        )
        for dp in (1, 3)
    ]
    for number, saved in enumerate(cuts):
        (directory := tmp_path / str(number)).mkdir()
        write(directory, shape, saved)
        reader = FragmentReader(directory)
        for part, low, high in (place for wanted in cuts for place in wanted):
            expected = part.of(whole_of(shape, "exp_avg")).reshape(-1)[low:high]
            assert torch.equal(reader.read("exp_avg", "weight", part, low, high - low), expected)


@given(st.data())
def test_every_dim_of_larger_tensors_and_at_most_three_rectangles(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 4), min_size=3, max_size=4)))
    dim = data.draw(st.integers(0, len(shape) - 1))
    elements = torch.arange(prod(shape)).reshape(shape)

    def run(part: Part) -> Run:
        low = data.draw(st.integers(0, part.numel))
        return Run(part, low, data.draw(st.integers(0, part.numel - low)))

    def content(run: Run) -> torch.Tensor:
        return run.part.of(elements).reshape(-1)[run.start : run.start + run.numel]

    one, other = (run(Part.nth(shape, dim, data.draw(st.integers(0, of - 1)), of)) for of in (2, 3))
    shared = set()
    for a, b in overlaps(one, other):
        of_one, of_other = (
            fragments._view(content(one).clone(), a),
            fragments._view(content(other).clone(), b),
        )
        assert torch.equal(of_one, of_other)
        shared |= set(of_one.reshape(-1).tolist())
    assert shared == set(content(one).tolist()) & set(content(other).tolist())
    assert len(list(overlaps(one, Run(Part.whole(shape), 0, prod(shape))))) <= 3


def test_parts_that_share_no_matrix_are_refused() -> None:
    parts = [Part((2, 4, 4), dim, 0, 2) for dim in (1, 2)]
    with pytest.raises(ValueError, match="no rectangle"):
        list(overlaps(*(Run(part, 0, part.numel) for part in parts)))


def test_what_two_ranks_saved_is_told_even_where_something_else_is_missing(tmp_path: Path) -> None:
    shape = (4, 6)
    halves = [Part.nth(shape, 1, index, 2) for index in range(2)]
    write(tmp_path, shape, [(halves[0], 0, 12), (halves[0], 0, 12)])
    with pytest.raises(
        CheckpointError, match=r"rank-00001\.safetensors are in another rank's file too"
    ):
        FragmentReader(tmp_path).read("param", "weight", Part.whole(shape), 0, 24)


def test_ranks_that_disagree_and_other_models_are_told(tmp_path: Path) -> None:
    write(tmp_path, (4, 6), [(Part.whole((4, 6)), 0, 24)])
    reader = FragmentReader(tmp_path)
    with pytest.raises(CheckpointError, match=r"weight.*\(4, 6\) saved, \(6, 4\) wanted"):
        reader.check({"weight": (6, 4)})
    with pytest.raises(CheckpointError, match=r"saved as \(4, 6\), and is wanted as \(6, 4\)"):
        reader.read("param", "weight", Part.whole((6, 4)), 0, 24)
    with pytest.raises(CheckpointError, match="0 of 2 elements found"):
        reader.read("param", "bias", Part.whole((2,)), 0, 2)
    other = Fragment("weight", Part.whole((6, 4)), 0, {kind: torch.zeros(24) for kind in KINDS})
    Snapshot([other], optimizer_step=3).write(tmp_path / "rank-00001.safetensors")
    with pytest.raises(CheckpointError, match=r"rank-00001.* has shape \(6, 4\) for 'weight'"):
        FragmentReader(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [{"start": 20}, {"numel": -1}, {"start": -1}, {"length": 3}, {"shape": 7}, {"start": None}],
    ids=json.dumps,
)
def test_a_header_that_cannot_be_is_no_fragment_file(
    tmp_path: Path, wrong: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    dumps = json.dumps
    monkeypatch.setattr(
        fragments.json,
        "dumps",
        lambda places: dumps({name: place | wrong for name, place in places.items()}),
    )
    write(tmp_path, (4, 6), [(Part.whole((4, 6)), 0, 24)])
    with pytest.raises(CheckpointError, match="is not a fragment file"):
        FragmentReader(tmp_path)


@pytest.fixture
def lengths_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many elements each read took from a file; a reader that wants a tensor in one piece finds
    no way to."""
    lengths: list[int] = []
    opened = fragments.safe_open

    class Slices:
        def __init__(self, path: Path, framework: str) -> None:
            self.file = opened(path, framework=framework)
            self.metadata: Callable[[], dict[str, str]] = self.file.metadata

        def get_slice(self, key: str) -> Any:
            tensor = self.file.get_slice(key)

            class Counted:
                def __getitem__(self, index: slice) -> torch.Tensor:
                    lengths.append(index.stop - index.start)
                    return tensor[index]

            return Counted()

    monkeypatch.setattr(fragments, "safe_open", Slices)
    return lengths


def test_only_what_is_asked_for_is_read(
    tmp_path: Path, lengths_read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = (64, 48)
    write(tmp_path, shape, [(Part.nth(shape, 1, index, 2), 0, 64 * 24) for index in range(2)])
    reader = FragmentReader(tmp_path)
    assert lengths_read == [], "opening reads headers alone"

    reader.read("param", "weight", Part.nth(shape, 1, 1, 2), 100, 500)
    assert sum(lengths_read) == 500, "of the same part nothing but the run"
    lengths_read.clear()

    reader.read("param", "weight", Part.nth(shape, 0, 3, 4), 0, 16 * 48)
    assert sum(lengths_read) == 16 * 48, "rows out of columns: exactly their elements"
    lengths_read.clear()

    monkeypatch.setattr(fragments, "_READ_AT_ONCE", 10 * 24)
    reader.read("param", "weight", Part.nth(shape, 1, 0, 8), 0, 64 * 6)
    assert max(lengths_read) <= 10 * 24, (
        "a few columns of longer rows: never more than a strip at once"
    )
    monkeypatch.setattr(fragments, "_READ_AT_ONCE", 1)
    lengths_read.clear()
    reader.read("param", "weight", Part.nth(shape, 1, 0, 8), 0, 64 * 6)
    assert sum(lengths_read) == 64 * 6, "where a row is longer than a strip, only the columns"
