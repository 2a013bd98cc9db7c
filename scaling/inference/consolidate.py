"""The weights of a checkpoint, whatever layout wrote it, as one model in a directory of safetensors
files.

Weight by weight, so that no more than one file's worth is in memory; the directory is complete or
absent.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from scaling.arrangements.base import Place
from scaling.arrangements.table import arrangement_of, their_config
from scaling.checkpoint.fragments import FragmentReader
from scaling.checkpoint.manifest import Manifest
from scaling.config.run_config import RunConfig
from scaling.data.tokenizer.byte_level import EOT, SPECIAL, Tokenizer
from scaling.errors import ConfigError, RunDirError
from scaling.inference.trained import find_checkpoint, read_tokenizer
from scaling.model import build_model
from scaling.model.export.moves import by_their_name, joined, their_shape
from scaling.parallel.part import Part
from scaling.planner.cost.lengths import lengths
from scaling.runs.directory import RunDir
from scaling.runs.files import fsync, write_json

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DType = Literal["fp32", "bf16"]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_HUB_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


@dataclass(frozen=True)
class Consolidated:
    """What was made: where, of which step, how many bytes of weights in how many files."""

    path: Path
    step: int
    total_bytes: int
    n_files: int


@dataclass(frozen=True)
class Weight:
    """A weight of the whole model that is not in memory until it is asked for, as fp32."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def consolidate(
    run: Path,
    to: str,
    *,
    hf: bool,
    dtype: DType,
    max_shard_bytes: int,
    step: int | None,
    notice: Callable[[str], None],
) -> Consolidated:
    """Write the weights of the run at `run` to the directory `to`, under our names or those of
    transformers (`hf`).

    step: of the checkpoint, null: the newest sound one; `notice` is told of damaged ones. Raises
    ConfigError when there is no such checkpoint, no counterpart in transformers or something in the
    way, CheckpointError or RunDirError for what is damaged.
    """
    run_dir = RunDir(run)
    config = run_dir.read_config()
    if hf:
        arrangement_of(config)
    target = _free(to)
    tokenizer = read_tokenizer(run_dir, config)
    checkpoint, manifest = find_checkpoint(run_dir, config, notice, step=step)
    weights = list((_theirs if hf else _ours)(config, FragmentReader(checkpoint)))
    with _appearing(target) as directory:
        total_bytes, n_files = write_weights(directory, weights, _DTYPES[dtype], max_shard_bytes)
        described = (
            their_config(config, eos_id=tokenizer.eot_id, pad_id=_pad_id(tokenizer, config))
            if hf
            else _our_config(config)
        )
        write_json(
            directory / CONFIG_FILE, described | {"dtype": _HUB_DTYPES[dtype] if hf else dtype}
        )
        write_json(directory / "metadata.json", _metadata(run, config, manifest, dtype))
        shutil.copyfile(run_dir.tokenizer, directory / "tokenizer.json")
        if hf:
            write_json(directory / "tokenizer_config.json", _hub_tokenizer(config))
    return Consolidated(target, manifest.step, total_bytes, n_files)


def write_weights(
    directory: Path, weights: Sequence[Weight], dtype: torch.dtype, max_shard_bytes: int
) -> tuple[int, int]:
    """Write model.safetensors, or numbered files and their index as Hugging Face does; returns
    (bytes of weights, files).

    One file's worth of weights is in memory at a time, and of one weight what it is made of.
    """
    shards = list(_shards(weights, dtype.itemsize, max_shard_bytes))
    place: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = (
            WEIGHTS_FILE
            if len(shards) == 1
            else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        )
        save_file(
            {weight.name: weight.read().to(dtype) for weight in shard},
            directory / name,
            metadata={"format": "pt"},
        )
        place |= {weight.name: name for weight in shard}
    total_bytes = sum(prod(weight.shape) for weight in weights) * dtype.itemsize
    if len(shards) > 1:
        write_json(
            directory / INDEX_FILE, {"metadata": {"total_size": total_bytes}, "weight_map": place}
        )
    return total_bytes, len(shards)


def _shards(weights: Sequence[Weight], itemsize: int, limit: int) -> Iterator[list[Weight]]:
    """In order, as many weights a file as fit; one that is larger than the limit is alone."""
    shard: list[Weight] = []
    size = 0
    for weight in weights:
        weight_bytes = prod(weight.shape) * itemsize
        if shard and size + weight_bytes > limit:
            yield shard
            shard, size = [], 0
        shard.append(weight)
        size += weight_bytes
    yield shard


def _shapes(config: RunConfig, reader: FragmentReader) -> dict[str, tuple[int, ...]]:
    """Of the model of `config`; raises CheckpointError unless they are those of the checkpoint."""
    shapes = {
        name: tuple(parameter.shape)
        for name, parameter in build_model(config, "meta").named_parameters()
    }
    reader.check(shapes)
    return shapes


def _read(reader: FragmentReader, name: str) -> Tensor:
    shape = reader.shapes[name]
    return reader.read("param", name, Part.whole(shape), 0, prod(shape)).view(shape)


def _ours(config: RunConfig, reader: FragmentReader) -> Iterator[Weight]:
    for name, shape in _shapes(config, reader).items():
        yield Weight(name, shape, partial(_read, reader, name))


def _theirs(config: RunConfig, reader: FragmentReader) -> Iterator[Weight]:
    shapes = _shapes(config, reader)
    for name, places in by_their_name(config).items():

        def read(places: Sequence[Place] = places) -> Tensor:
            return joined(places, [_read(reader, place.ours) for place in places])

        yield Weight(name, their_shape(places, shapes), read)


def _our_config(config: RunConfig) -> dict[str, Any]:
    """What the model is and what it reads, by the groups of the configuration."""
    groups = ("model", "attention", "position", "objective", "tokenizer")
    dumped = config.model_dump(mode="json", include=set(groups))
    return {name: dumped[name] for name in groups} | {
        "vocab_size": config.vocab_size,
        "seq_len": config.train.seq_len,
    }


def _metadata(run: Path, config: RunConfig, manifest: Manifest, dtype: DType) -> dict[str, Any]:
    return {
        "run": run.name,
        "semantic_hash": config.semantic_hash,
        "corpus_fingerprint": manifest.corpus_fingerprint,
        "step": manifest.step,
        "n_tokens": manifest.state.get("n_tokens"),
        "dtype": dtype,
    }


def _pad_id(tokenizer: Tokenizer, config: RunConfig) -> int:
    """Padding, or where the vocabulary has none end-of-text, which is as good where nothing looks
    at it."""
    return (
        tokenizer.special("pad") if config.tokenizer.special_tokens == "all" else tokenizer.eot_id
    )


def _hub_tokenizer(config: RunConfig) -> dict[str, Any]:
    """What AutoTokenizer needs beside tokenizer.json."""
    special = (
        {f"{name}_token": f"<|{name}|>" for name in SPECIAL}
        if config.tokenizer.special_tokens == "all"
        else {}
    )
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOT,
        "model_max_length": lengths(config).inputs,
        "clean_up_tokenization_spaces": False,
    } | special


def _free(to: str) -> Path:
    """Where the directory will stand. Raises ConfigError when something is there."""
    target = Path(to).expanduser().absolute()
    if target.is_dir() and not any(target.iterdir()):
        return target
    if target.exists():
        raise ConfigError(
            f"{target} exists already",
            f"to={to}",
            "Give a directory that is not there yet, or remove this one.",
        )
    return target


@contextlib.contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """A hidden directory beside `target` that becomes it at the end, and is removed when anything
    goes wrong.

    Raises RunDirError when the disk refuses.
    """
    made = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        made = Path(
            tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent)
        )
        yield made
        for path in [*made.iterdir(), made]:  # which are private to their maker until now
            path.chmod((0o777 if path.is_dir() else 0o666) & ~_umask())
            fsync(path)
        os.replace(made, target)
        fsync(target.parent)
    except (OSError, SafetensorError) as error:
        fix = "Free some space, or choose another directory."
        raise RunDirError(f"cannot write {target}: {error}", f"to={target}", fix) from error
    finally:
        if made is not None and made.exists():
            shutil.rmtree(made)


def _umask() -> int:
    """Of this process: it cannot be asked for without being set."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
