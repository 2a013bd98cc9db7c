"""Weights and optimiser states keyed by parameter name, independent of the layout that wrote them.

Each rank writes one safetensors file with the pieces it owns: a piece is a run of a parameter's elements in
row-major order, and says where it starts. A reader asks for any run of any parameter, so that a
checkpoint of one layout opens under every other, without any rank holding the whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from scaling.errors import CheckpointError
from scaling.parallel.part import Part

KINDS = ("param", "exp_avg", "exp_avg_sq")
"""fp32 master weights, and Adam's first and second moments."""


@dataclass(frozen=True)
class Fragment:
    """Elements [start, start + numel) of a flattened part of the parameter `name`, of every kind in KINDS, all fp32."""

    name: str
    part: Part
    start: int
    tensors: Mapping[str, torch.Tensor]

    @property
    def numel(self) -> int:
        return self.tensors["param"].numel()


@dataclass(frozen=True)
class Snapshot:
    """One rank's part of a checkpoint in the host's memory, flat and contiguous: later steps do not change it.

    optimizer_step: updates that the moments have seen (Adam's t).
    """

    fragments: Sequence[Fragment]
    optimizer_step: int

    @staticmethod
    def of(fragments: Iterable[Fragment], *, optimizer_step: int) -> Snapshot:
        return Snapshot([_copy(fragment) for fragment in fragments], optimizer_step)

    def write(self, path: Path) -> None:
        """As one safetensors file. Raises OSError or SafetensorError."""
        tensors: dict[str, torch.Tensor] = {}
        places = {}
        for fragment in self.fragments:
            part = fragment.part
            places[fragment.name] = {
                "shape": list(part.shape), "dim": part.dim, "first": part.first, "length": part.length,
                "start": fragment.start, "numel": fragment.numel,
            }  # fmt: skip
            tensors |= {f"{kind}/{fragment.name}": fragment.tensors[kind] for kind in KINDS}
        header = {"fragments": json.dumps(places), "optimizer_step": str(self.optimizer_step)}
        save_file(tensors, path, metadata=header)


def _copy(fragment: Fragment) -> Fragment:
    def flat(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().reshape(-1).to("cpu", torch.float32, copy=True).contiguous()

    return replace(fragment, tensors={kind: flat(fragment.tensors[kind]) for kind in KINDS})


class FragmentReader:
    """Runs of parameters out of a directory of fragment files. Reads only what is asked for."""

    def __init__(self, directory: Path) -> None:
        self._files = {}
        self._pieces: dict[str, list[tuple[int, int, Path]]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        steps = set()
        for path in sorted(directory.glob("rank-*.safetensors")):
            try:
                file = safe_open(path, framework="pt")
                metadata = file.metadata()
                places = json.loads(metadata["fragments"])
                steps.add(int(metadata["optimizer_step"]))
            except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
                raise CheckpointError(f"{path} is not a fragment file: {error}") from error
            self._files[path] = file
            for name, place in places.items():
                self.shapes[name] = tuple(place["shape"])
                self._pieces.setdefault(name, []).append((place["start"], place["numel"], path))
        if len(steps) != 1:
            raise CheckpointError(f"{directory} holds fragments of {len(steps)} different optimiser steps, not of one")
        self.optimizer_step = steps.pop()

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise CheckpointError unless the checkpoint has exactly these parameters."""
        if dict(shapes) == self.shapes:
            return
        wrong = sorted(n for n in set(shapes) | set(self.shapes) if shapes.get(n) != self.shapes.get(n))
        first = wrong[0]
        raise CheckpointError(
            f"the checkpoint is of another model: {len(wrong)} parameters differ, first {first!r}: "
            f"{self.shapes.get(first)} saved, {shapes.get(first)} wanted"
        )

    def read(self, kind: str, name: str, part: Part, start: int, numel: int) -> torch.Tensor:
        """Elements [start, start + numel) of a flattened part of a parameter, fp32 [numel] on the CPU."""
        out = torch.empty(numel)
        filled = 0
        for piece_start, piece_numel, path in self._pieces.get(name, []):
            low, high = max(start, piece_start), min(start + numel, piece_start + piece_numel)
            if low < high:
                piece = self._files[path].get_slice(f"{kind}/{name}")
                out[low - start : high - start] = piece[low - piece_start : high - piece_start]
                filled += high - low
        if filled != numel:
            raise CheckpointError(f"{kind} of {name!r}: {filled} of {numel} elements found; a rank's file is missing")
        return out
