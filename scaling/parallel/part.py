"""What of a parameter a rank holds: all of it, or a run of rows or columns. Pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any


@dataclass(frozen=True)
class Part:
    """Indices [first, first + length) of dimension `dim` of a parameter that has `shape` as a
    whole."""

    shape: tuple[int, ...]
    dim: int
    first: int
    length: int

    @staticmethod
    def whole(shape: tuple[int, ...]) -> Part:
        return Part(shape, 0, 0, shape[0] if shape else 1)

    @staticmethod
    def nth(shape: tuple[int, ...], dim: int, index: int, of: int) -> Part:
        """The part of rank `index` of `of`: as equal as they can be, the earlier ranks having the
        larger parts."""
        size = -(-shape[dim] // of)
        first = min(index * size, shape[dim])
        return Part(shape, dim, first, min(size, shape[dim] - first))

    @property
    def is_whole(self) -> bool:
        return not self.shape or self.length == self.shape[self.dim]

    @property
    def local_shape(self) -> tuple[int, ...]:
        if self.is_whole:
            return self.shape
        return (*self.shape[: self.dim], self.length, *self.shape[self.dim + 1 :])

    @property
    def numel(self) -> int:
        return prod(self.local_shape)

    def of(self, whole: Any) -> Any:
        """This part of a whole tensor, as a view."""
        return whole if self.is_whole else whole.narrow(self.dim, self.first, self.length)


def part_of(parameter: Any) -> Part:
    """What `parameter` is of the whole model's: marked by what has cut it, else all of it."""
    part: Part | None = getattr(parameter, "part", None)
    return part or Part.whole(tuple(getattr(parameter, "ds_shape", parameter.shape)))
