"""Weights and optimiser states keyed by parameter name, independent of the layout that wrote them.

Each rank writes one safetensors file with the fragments it owns. Tensor parallelism cuts a
parameter into parts, and ZeRO cuts a part, in row-major order, into runs of elements. A fragment is
such a run, with its position in the whole. A reader asks for any run of any part. So a checkpoint
of one layout opens under every other, and no rank ever holds the whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from scaling.checkpoint.manifest import RANK_FILES
from scaling.errors import CheckpointError
from scaling.parallel.part import Part
from scaling.parallel.rectangles import Rectangle, Run, overlaps

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's first and second moments, by the names of torch's optimisers."""
KINDS = ("param", *MOMENTS)
"""What is saved of a parameter, all fp32: master weights and moments."""
_READ_AT_ONCE = 1 << 20
"""Elements (4 MB) that one read takes at most. Columns of longer rows are read with what lies
between them. Assumption."""


@dataclass(frozen=True)
class Fragment:
    """Elements [start, start + numel) of a flattened part of the parameter `name`, of every kind in
    KINDS, all fp32."""

    name: str
    part: Part
    start: int
    tensors: Mapping[str, torch.Tensor]

    @property
    def numel(self) -> int:
        return self.tensors["param"].numel()


@dataclass(frozen=True)
class Snapshot:
    """One rank's fragments in the host's memory, flat and contiguous: later steps do not change
    them.

    optimizer_step: number of updates that the moments have seen (Adam's t).
    """

    fragments: Sequence[Fragment]
    optimizer_step: int

    @staticmethod
    def of(
        fragments: Iterable[Fragment], *, optimizer_step: int, reuse: Snapshot | None = None
    ) -> Snapshot:
        """Copy `fragments`. reuse: an earlier snapshot of the same rank, whose memory is
        overwritten and which is invalid afterwards."""
        old = {fragment.name: fragment for fragment in reuse.fragments} if reuse is not None else {}
        return Snapshot(
            [_copy(fragment, old.get(fragment.name)) for fragment in fragments], optimizer_step
        )

    def write(self, path: Path) -> None:
        """Write one safetensors file. Raises OSError or SafetensorError."""
        tensors: dict[str, torch.Tensor] = {}
        headers = {}
        for fragment in self.fragments:
            part = fragment.part
            headers[fragment.name] = {
                "shape": list(part.shape),
                "dim": part.dim,
                "first": part.first,
                "length": part.length,
                "start": fragment.start,
                "numel": fragment.numel,
            }
            tensors |= {f"{kind}/{fragment.name}": fragment.tensors[kind] for kind in KINDS}
        header = {"fragments": json.dumps(headers), "optimizer_step": str(self.optimizer_step)}
        save_file(tensors, path, metadata=header)


def _copy(fragment: Fragment, memory: Fragment | None) -> Fragment:
    """Copy a fragment to the host's memory, which is pinned for a GPU's tensors."""

    def flat(kind: str) -> torch.Tensor:
        tensor = fragment.tensors[kind].detach().reshape(-1)
        # Fresh pages cost more than copying: 400 MB take 0.18 s into fresh ones, 0.02 s into used.
        if memory is not None and memory.numel == tensor.numel():
            return memory.tensors[kind].copy_(tensor)
        return torch.empty(tensor.numel(), dtype=torch.float32, pin_memory=tensor.is_cuda).copy_(
            tensor
        )

    return replace(fragment, tensors={kind: flat(kind) for kind in KINDS})


@dataclass(frozen=True)
class _Stored:
    """A fragment in the file at `path`, not read yet."""

    path: Path
    run: Run

    @staticmethod
    def at(path: Path, header: Mapping[str, Any]) -> _Stored:
        """Raises KeyError, TypeError or ValueError for a header that makes no sense."""
        part = Part(tuple(header["shape"]), header["dim"], header["first"], header["length"])
        if (
            min(header["start"], header["numel"]) < 0
            or header["start"] + header["numel"] > part.numel
        ):
            raise ValueError(
                f"elements {header['start']} + {header['numel']} of a part of {part.numel}"
            )
        return _Stored(path, Run(part, header["start"], header["numel"]))


class FragmentReader:
    """Reads runs of parts of parameters from a directory of fragment files, and no more than is
    asked for.

    shapes: shape of each whole parameter, by name. Raises CheckpointError for a file that is
    damaged or belongs to another checkpoint.
    """

    def __init__(self, directory: Path) -> None:
        self._files = {}
        self._stored: dict[str, list[_Stored]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        steps = set()
        for path in sorted(directory.glob(f"{RANK_FILES}.safetensors")):
            try:
                file = safe_open(path, framework="pt")
                metadata = file.metadata()
                found = {
                    name: _Stored.at(path, header)
                    for name, header in json.loads(metadata["fragments"]).items()
                }
                steps.add(int(metadata["optimizer_step"]))
            except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
                raise CheckpointError(f"{path} is not a fragment file: {error}") from error
            self._files[path] = file
            for name, stored in found.items():
                shape = stored.run.part.shape
                if self.shapes.setdefault(name, shape) != shape:
                    raise CheckpointError(
                        f"{path} has shape {shape} for {name!r}, and another rank's file has"
                        f" {self.shapes[name]}"
                    )
                self._stored.setdefault(name, []).append(stored)
        if len(steps) != 1:
            raise CheckpointError(
                f"{directory} holds fragments of {len(steps)} different optimiser steps, not of one"
            )
        self.optimizer_step = steps.pop()

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise CheckpointError unless the checkpoint has exactly these parameters."""
        if dict(shapes) == self.shapes:
            return
        wrong = sorted(
            n for n in set(shapes) | set(self.shapes) if shapes.get(n) != self.shapes.get(n)
        )
        first = wrong[0]
        raise CheckpointError(
            f"the checkpoint is of another model: {len(wrong)} parameters differ, first {first!r}: "
            f"{self.shapes.get(first)} saved, {shapes.get(first)} wanted"
        )

    def read(self, kind: str, name: str, part: Part, start: int, numel: int) -> torch.Tensor:
        """Read elements [start, start + numel) of a flattened part of a parameter, fp32 [numel] on
        the CPU.

        Raises CheckpointError unless each of them was saved exactly once.
        """
        if self.shapes.get(name, part.shape) != part.shape:
            raise CheckpointError(
                f"{name!r} was saved as {self.shapes[name]}, and is wanted as {part.shape}"
            )
        out, filled = torch.empty(numel), torch.zeros(numel, dtype=torch.bool)
        for stored in self._stored.get(name, []):
            for wanted, saved in overlaps(Run(part, start, numel), stored.run):
                if _view(filled, wanted).any():
                    raise CheckpointError(
                        f"{kind} of {name!r}: elements of {stored.path.name} are in another rank's"
                        " file too"
                    )
                _view(filled, wanted).fill_(True)
                self._copy(f"{kind}/{name}", stored.path, saved, wanted, out)
        found = int(filled.sum())
        if found != numel:
            raise CheckpointError(
                f"{kind} of {name!r}: {found} of {numel} elements found; a rank's file is missing"
            )
        return out

    def _copy(
        self, key: str, path: Path, saved: Rectangle, wanted: Rectangle, out: torch.Tensor
    ) -> None:
        """Copy a rectangle of a saved tensor to where it is wanted, in strips of rows that are each
        one run of the file."""
        tensor = self._files[path].get_slice(key)
        height = max(1, _READ_AT_ONCE // saved.stride)
        for first in range(0, saved.n_rows, height):
            source, target = saved.rows(first, height), wanted.rows(first, height)
            strip = tensor[
                source.offset : source.offset + (source.n_rows - 1) * source.stride + source.width
            ]
            _view(out, target).copy_(
                strip.as_strided((source.n_rows, source.width), (source.stride, 1))
            )


def _view(flat: torch.Tensor, rectangle: Rectangle) -> torch.Tensor:
    """A rectangle of a run: [n_rows, width]."""
    return flat.as_strided(
        (rectangle.n_rows, rectangle.width), (rectangle.stride, 1), rectangle.offset
    )
