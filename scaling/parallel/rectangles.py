"""Where a run of a flattened part lies in the whole parameter: a few rectangles of a matrix. Pure
arithmetic.

A parameter is seen as a matrix: the elements of `dim` and of the dims after it are a row, and there
is a row for each index of the dims before it. A part along `dim` is then a range of columns, and
one along dim 0 before it a range of rows. A run of a part has at most three rectangles: the rest of
a row, full rows, the beginning of a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from scaling.parallel.part import Part


@dataclass(frozen=True)
class Run:
    """Elements [start, start + numel) of a flattened part."""

    part: Part
    start: int
    numel: int


@dataclass(frozen=True)
class Rectangle:
    """Rows [row, row + n_rows) and columns [column, column + width) of the matrix.

    Element (r, c) of it is element offset + (r - row) * stride + (c - column) of the run.
    """

    row: int
    n_rows: int
    column: int
    width: int
    offset: int
    stride: int

    def cut(self, row: int, n_rows: int, column: int, width: int) -> Rectangle:
        """A rectangle inside this one, and its place in the same run."""
        offset = self.offset + (row - self.row) * self.stride + (column - self.column)
        return Rectangle(row, n_rows, column, width, offset, self.stride)

    def rows(self, first: int, count: int) -> Rectangle:
        """`count` of its rows at most, from the one that is `first` among them."""
        return self.cut(self.row + first, min(count, self.n_rows - first), self.column, self.width)


def overlaps(one: Run, other: Run) -> Iterator[tuple[Rectangle, Rectangle]]:
    """What two runs of a parameter have in common: each rectangle with its place in `one`, and with
    its place in `other`.

    The parts may be cut along different dims if one of these is 0, as both are in a matrix;
    ValueError if not.
    """
    dim = max((run.part.dim for run in (one, other) if not run.part.is_whole), default=0)
    theirs = list(_rectangles(other, dim))
    for ours in _rectangles(one, dim):
        for rectangle in theirs:
            row, column = max(ours.row, rectangle.row), max(ours.column, rectangle.column)
            n_rows = min(ours.row + ours.n_rows, rectangle.row + rectangle.n_rows) - row
            width = min(ours.column + ours.width, rectangle.column + rectangle.width) - column
            if n_rows > 0 and width > 0:
                yield (
                    ours.cut(row, n_rows, column, width),
                    rectangle.cut(row, n_rows, column, width),
                )


def _rectangles(run: Run, dim: int) -> Iterator[Rectangle]:
    first_row, first_column, row_width = _corner(run.part, dim)
    position = 0
    while position < run.numel:
        row, column = divmod(run.start + position, row_width)
        left = run.numel - position
        n_rows, width = (
            (left // row_width, row_width)
            if column == 0 and left >= row_width
            else (1, min(row_width - column, left))
        )
        yield Rectangle(first_row + row, n_rows, first_column + column, width, position, row_width)
        position += n_rows * width


def _corner(part: Part, dim: int) -> tuple[int, int, int]:
    """(first row, first column, columns) of a part in the matrix of `dim`."""
    shape = part.shape
    if part.is_whole:
        return 0, 0, prod(shape[dim:])
    if part.dim == dim:
        inner = prod(shape[dim + 1 :])
        return 0, part.first * inner, part.length * inner
    if part.dim == 0:
        return part.first * prod(shape[1:dim]), 0, prod(shape[dim:])
    raise ValueError(
        f"a part along dim {part.dim} of {shape} is no rectangle in the matrix of dim {dim}"
    )
