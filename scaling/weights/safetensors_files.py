"""Weights in the safetensors files of a directory, read a rectangle at a time.

The headers are plain JSON and are read without torch, so that what is wrong with a file is known
before anything is started.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from torch import Tensor

INDEX_FILE, WEIGHTS_FILE = "model.safetensors.index.json", "model.safetensors"
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Dtypes that are read; all become fp32."""
_MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5")


@dataclass(frozen=True)
class Entry:
    """One weight of a file, as its header says."""

    path: Path
    dtype: str
    shape: tuple[int, ...]


class SafetensorsFiles:
    """All weights of a directory. Raises CheckpointError for a damaged file, ConfigError for a
    directory without such files."""

    def __init__(self, directory: Path) -> None:
        self.files = _weight_files(directory)
        self.entries: dict[str, Entry] = {}
        for path in self.files:
            for name, entry in read_header(path).items():
                if name in self.entries:
                    raise CheckpointError(f"{path} has {name}, and {self.entries[name].path} too")
                self.entries[name] = entry
        self._opened: dict[Path, Any] = {}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in self.entries.items()}

    def read(self, name: str, slices: tuple[Any, ...]) -> Tensor:
        """A rectangle of a weight in fp32 on the CPU."""
        entry = self.entries[name]
        if entry.dtype not in _ITEM_BYTES:
            raise ConfigError(
                f"{name} of {entry.path} is in {entry.dtype}, which is not read",
                fix=f"What is read: {', '.join(_ITEM_BYTES)}.",
            )
        if entry.path not in self._opened:
            from safetensors import safe_open

            self._opened[entry.path] = safe_open(entry.path, framework="pt")
        found: Tensor = self._opened[entry.path].get_slice(name)[slices]
        return found.float()


def _weight_files(directory: Path) -> list[Path]:
    """The files that the index names, or the only one, or all of them."""
    index = directory / INDEX_FILE
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
            paths = [directory / Path(name).name for name in names]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index} is no index of weights: {error}") from error
    else:
        paths = sorted(directory.glob("*.safetensors"))
        if directory / WEIGHTS_FILE in paths:
            paths = [directory / WEIGHTS_FILE]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise CheckpointError(
            f"{missing[0]} is missing", str(index), "Download or copy the directory again."
        )
    if not paths:
        raise _no_weights(directory)
    return paths


def _no_weights(directory: Path) -> ConfigError:
    pickles = sorted(path.name for path in directory.iterdir() if path.suffix in _PICKLES)
    if pickles:
        return ConfigError(
            f"{directory} has weights as {pickles[0]} alone, and unpickling executes what a "
            "stranger wrote",
            fix='Make safetensors of it where you trust its origin: python -c "from transformers '
            f"import AutoModel as M; M.from_pretrained('{directory}').save_pretrained('NEW')\", "
            "with the class that config.json names in place of AutoModel.",
        )
    return ConfigError(
        f"{directory} has no weights",
        fix=f"Weights are {WEIGHTS_FILE}, or numbered files with {INDEX_FILE}.",
    )


def read_header(path: Path) -> dict[str, Entry]:
    """The weights of one file. Raises CheckpointError for one that is cut off or something else."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= _MAX_HEADER_BYTES:
                raise ValueError(f"its header would have {length} bytes")
            header = json.loads(file.read(length))
        size = path.stat().st_size
        entries, end = {}, 0
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            first, last = entry["data_offsets"]
            shape = tuple(int(n) for n in entry["shape"])
            item_bytes = _ITEM_BYTES.get(entry["dtype"])
            if item_bytes is not None and last - first != prod(shape) * item_bytes:
                raise ValueError(f"{name} has {last - first} bytes for {shape} of {entry['dtype']}")
            entries[name] = Entry(path, entry["dtype"], shape)
            end = max(end, last)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is not a safetensors file: {error}", fix="Download or copy it again."
        ) from error
    if size != 8 + length + end:
        raise CheckpointError(
            f"{path} has {size} bytes, and its header speaks of {8 + length + end}",
            fix="It is cut off or damaged: download or copy it again.",
        )
    return entries
