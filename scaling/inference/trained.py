"""A trained run, opened for use on one device: its newest sound checkpoint, without Ray, DeepSpeed
or its corpus."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from scaling.checkpoint.fragments import FragmentReader
from scaling.checkpoint.manifest import Manifest
from scaling.checkpoint.store import (
    checkpoint_name,
    committed,
    has_step,
    newest_valid,
    verify,
)
from scaling.config.run_config import RunConfig
from scaling.data.tokenizer.byte_level import Tokenizer
from scaling.errors import ConfigError, RunDirError
from scaling.model import LanguageModel, build_model
from scaling.parallel.part import part_of
from scaling.runs.directory import RunDir
from scaling.runs.files import disk_error

_N_SHOWN = 10
"""Steps that an error lists: a run may have thousands."""


@dataclass(frozen=True)
class Trained:
    """A model in evaluation mode with fp32 weights, as they were after `step`."""

    path: Path
    config: RunConfig
    model: LanguageModel
    tokenizer: Tokenizer
    step: int


def open_trained(
    path: Path, device: torch.device, notice: Callable[[str], None], *, step: int | None = None
) -> Trained:
    """The run at `path`, with the weights of its newest sound checkpoint or of `step`.

    Raises ConfigError for one without that checkpoint, CheckpointError or RunDirError for a damaged
    one.

    notice: is told of checkpoints that are damaged and passed over.
    """
    run_dir = RunDir(path)
    config = run_dir.read_config()
    checkpoint, manifest = find_checkpoint(run_dir, config, notice, step=step)
    tokenizer = read_tokenizer(run_dir, config)
    model = build_model(config, device)
    _load(model, checkpoint)
    return Trained(path, config, model.eval(), tokenizer, manifest.step)


def find_checkpoint(
    run_dir: RunDir, config: RunConfig, notice: Callable[[str], None], *, step: int | None = None
) -> tuple[Path, Manifest]:
    """The run's newest sound checkpoint, or that of `step`, which then must be sound.

    Raises ConfigError when there is none, CheckpointError or RunDirError for what is damaged or of
    another run.
    """
    if step is not None:
        path = _checkpoint_of(run_dir, step)
        found: tuple[Path, Manifest] | None = path, verify(path)
    else:
        found = newest_valid(
            run_dir.checkpoints,
            on_damaged=lambda _, error: notice(f"passing over a checkpoint: {error.what}"),
        )
    if found is None:
        raise _no_checkpoint(run_dir)
    checkpoint, manifest = found
    if manifest.semantic_hash != config.semantic_hash:
        raise RunDirError(
            f"{checkpoint} belongs to run {manifest.semantic_hash[:8]}, and {run_dir.path / 'config.yaml'} describes "
            f"{config.run_id}",
            fix="Restore config.yaml or the checkpoint: one of them was replaced.",
        )
    return checkpoint, manifest


def _checkpoint_of(run_dir: RunDir, step: int) -> Path:
    if has_step(run_dir.checkpoints, step):
        return run_dir.checkpoints / checkpoint_name(step)
    found = [at for at, _ in committed(run_dir.checkpoints)]
    if not found:
        raise _no_checkpoint(run_dir)
    shown = ", ".join(map(str, found[-_N_SHOWN:]))
    more = f"{len(found) - _N_SHOWN} older ones, and " if len(found) > _N_SHOWN else ""
    raise ConfigError(
        f"{run_dir.path.name} has no checkpoint of step {step}",
        f"step={step}",
        f"There are: {more}{shown}.",
    )


def _no_checkpoint(run_dir: RunDir) -> ConfigError:
    return ConfigError(
        f"{run_dir.path} has no checkpoint yet (state: {run_dir.state()})",
        f"run={run_dir.path.name}",
        "One is written as the checkpoint group says, and when a run ends or is stopped by Ctrl-C.",
    )


def find_device(name: str) -> torch.device:
    """The device of an option. Raises ConfigError for one that torch does not know or this machine
    does not have."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    fix = "Use device=cpu" + (
        f", or cuda:0 to cuda:{torch.cuda.device_count() - 1}."
        if torch.cuda.is_available()
        else "."
    )
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device={name} is no device", "from the command line", fix) from error
    if device.type not in ("cpu", "cuda") or (
        device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    ):
        raise ConfigError(f"device={name} is not on this machine", "from the command line", fix)
    return device


def read_tokenizer(run_dir: RunDir, config: RunConfig) -> Tokenizer:
    """That of the run. Raises RunDirError when its file is missing, damaged or another one's."""
    path = run_dir.tokenizer
    fix = f"Restore it from a copy, or copy tokenizer.json of the run's corpus (data.cache_dir={config.data.cache_dir})."
    try:
        tokenizer = Tokenizer.from_bytes(path.read_bytes())
    except FileNotFoundError as error:
        raise RunDirError(f"{path} is missing", fix=fix) from error
    except OSError as error:
        raise disk_error("read", path, error) from error
    except ValueError as error:
        raise RunDirError(f"{path} is not a tokenizer: {error}", fix=fix) from error
    if tokenizer.vocab_size != config.tokenizer.vocab_size:
        what = f"{path} has {tokenizer.vocab_size} entries, and the run was trained with {config.tokenizer.vocab_size}"
        raise RunDirError(what, fix=fix)
    return tokenizer


@torch.no_grad()
def _load(model: LanguageModel, checkpoint: Path) -> None:
    reader = FragmentReader(checkpoint)
    parameters = dict(model.named_parameters())
    reader.check({name: tuple(parameter.shape) for name, parameter in parameters.items()})
    for name, parameter in parameters.items():
        parameter.copy_(
            reader.read("param", name, part_of(parameter), 0, parameter.numel()).view_as(parameter)
        )
