"""The GGUF format: metadata and places of weights in one file, read without loading the weights.

Layout, little endian: magic, version, numbers of weights and of metadata, the metadata, a list of
weights, and their data behind a multiple of general.alignment (github.com/ggml-org/ggml,
docs/gguf.md). The header is parsed here: the gguf package takes seconds for a large vocabulary.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from scaling.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    import numpy as np

_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9
_MOST = 1 << 31
"""No count of a sound header is larger."""


@dataclass(frozen=True)
class Stored:
    """One weight: its shape as in PyTorch, its ggml type, and where its data begin and end."""

    name: str
    shape: tuple[int, ...]
    type: int
    first: int
    last: int


@dataclass(frozen=True)
class GGUFFile:
    """The header of a file."""

    path: Path
    metadata: dict[str, Any]
    weights: dict[str, Stored]

    def rows(self, name: str) -> np.ndarray:
        """The data of a matrix as bytes, one row of the matrix each, mapped and not read."""
        import numpy as np

        stored = self.weights[name]
        raw = np.memmap(self.path, np.uint8, "r", stored.first, (stored.last - stored.first,))
        return raw.reshape(stored.shape[0] if len(stored.shape) > 1 else 1, -1)


def package() -> Any:
    """The gguf package. Raises ConfigError where it is not installed."""
    try:
        import gguf
    except ImportError as error:
        raise ConfigError(
            "GGUF files need the package gguf",
            fix="Install it: pip install 'scaling-ladder[models]'.",
        ) from error
    return gguf


def read_gguf(path: Path) -> GGUFFile:
    """Raises ConfigError for a file that is not there or of another version, CheckpointError for
    one that is cut off."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            return _parsed(path, file, size)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}", fix="Give a file: gguf:FILE."
        ) from error
    except (struct.error, ValueError, KeyError, OverflowError, MemoryError) as error:
        raise CheckpointError(
            f"{path} is cut off or damaged in its header: {error}", fix="Download or copy it again."
        ) from error


def _parsed(path: Path, file: BinaryIO, size: int) -> GGUFFile:
    magic = file.read(4)
    if magic != _MAGIC:
        raise ConfigError(f"{path} is not a GGUF file", fix="Give one: gguf:FILE.")
    version = _scalar(file, "<I")
    if version not in _VERSIONS:
        # a version above 65535 is that of a file for big-endian machines
        raise ConfigError(
            f"{path} is of GGUF version {version}",
            fix=f"Versions that are read: {' and '.join(map(str, _VERSIONS))}, little endian. "
            "llama.cpp's convert_hf_to_gguf.py writes them.",
        )
    n_weights, n_metadata = _count(file), _count(file)
    metadata = {_string(file): _value(file, _scalar(file, "<I")) for _ in range(n_metadata)}
    listed = []
    for _ in range(n_weights):
        name = _string(file)
        dims = [_scalar(file, "<Q") for _ in range(_scalar(file, "<I"))]
        listed.append((name, tuple(reversed(dims)), _scalar(file, "<I"), _scalar(file, "<Q")))
    alignment = int(metadata.get("general.alignment", 32))
    begin = -(-file.tell() // alignment) * alignment
    weights = {
        name: Stored(
            name, shape, kind, begin + offset, begin + offset + _n_bytes(path, name, shape, kind)
        )
        for name, shape, kind, offset in listed
    }
    end = max((stored.last for stored in weights.values()), default=begin)
    if size < end:
        raise CheckpointError(
            f"{path} has {size} bytes, and its header speaks of {end}",
            fix="It is cut off: download or copy it again.",
        )
    return GGUFFile(path, metadata, weights)


def _n_bytes(path: Path, name: str, shape: tuple[int, ...], kind: int) -> int:
    gguf = package()
    try:
        type_ = gguf.GGMLQuantizationType(kind)
        n_block, block_bytes = gguf.GGML_QUANT_SIZES[type_]
    except (ValueError, KeyError):
        raise ConfigError(
            f"{name} of {path.name} is stored in ggml type {kind}, which is not read",
            fix=f"What is read: {', '.join(readable())}.",
        ) from None
    if type_.name not in readable():
        raise ConfigError(
            f"{name} of {path.name} is stored as {type_.name}, which is not read",
            fix=f"What is read: {', '.join(readable())}.",
        )
    return int(prod(shape) // n_block * block_bytes)


def readable() -> list[str]:
    """Names of the types whose numbers can be restored."""
    gguf = package()
    quantised = {type_.name for type_ in gguf.quants._type_traits}
    return sorted(quantised | {"F32", "F16"})


def _scalar(file: BinaryIO, kind: str) -> Any:
    return struct.unpack(kind, file.read(struct.calcsize(kind)))[0]


def _count(file: BinaryIO) -> int:
    n: int = _scalar(file, "<Q")
    if n > _MOST:
        raise ValueError(f"a count of {n}")
    return n


def _string(file: BinaryIO) -> str:
    n = _count(file)
    content = file.read(n)
    if len(content) != n:
        raise ValueError("it ends within a text")
    return content.decode("utf-8", "surrogateescape")


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _string(file)
    if kind == _ARRAY:
        inner, n = _scalar(file, "<I"), _count(file)
        if inner in _SCALARS:
            item = struct.calcsize(_SCALARS[inner])
            return list(struct.unpack(f"<{n}{_SCALARS[inner][1]}", file.read(n * item)))
        return [_value(file, inner) for _ in range(n)]
    return _scalar(file, _SCALARS[kind])
