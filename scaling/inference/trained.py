"""Something trained, opened for use on one device, without Ray, DeepSpeed or a corpus."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from scaling.composition.source_config import config_of
from scaling.config.run_config import RunConfig
from scaling.data.tokenizer.byte_level import Tokenizer
from scaling.data.tokenizer.existing import existing_tokenizer
from scaling.errors import ConfigError, RunDirError
from scaling.model import LanguageModel, build_model
from scaling.parallel.part import part_of
from scaling.weights.reader import open_reader
from scaling.weights.source import Source

_N_SHOWN = 10
"""Steps that an error lists: a run may have thousands."""


@dataclass(frozen=True)
class Trained:
    """A model in evaluation mode with fp32 weights, and where it came from."""

    source: Source
    config: RunConfig
    model: LanguageModel
    tokenizer: Tokenizer

    @property
    def path(self) -> Path:
        return self.source.path

    @property
    def step(self) -> int | None:
        """Steps of training behind it, where it is a run."""
        return self.source.step

    @property
    def content_hash(self) -> str:
        return self.source.content_hash


@torch.no_grad()
def open_trained(source: Source, device: torch.device) -> Trained:
    """The model of a source. Raises ConfigError, CheckpointError or RunDirError for weights,
    settings and a tokenizer that do not go together."""
    config = config_of(source)
    tokenizer = tokenizer_of(source, config)
    reader = open_reader(source, config)
    model = build_model(config, device)
    for name, parameter in model.named_parameters():
        parameter.copy_(reader.read(name, part_of(parameter)))
    return Trained(source, config, model.eval(), tokenizer)


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
        raise ConfigError(f"device={name} is no device", fix=fix) from error
    if device.type not in ("cpu", "cuda") or (
        device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    ):
        raise ConfigError(f"device={name} is not on this machine", fix=fix)
    return device


def tokenizer_of(source: Source, config: RunConfig) -> Tokenizer:
    """The tokenizer of a source. Raises RunDirError or ConfigError for one that is damaged, or that
    is not the model's."""
    if source.kind not in ("run", "export"):
        tokenizer = existing_tokenizer(source.tokenizer, source.name, config.tokenizer)
        return _within(tokenizer, source, config)
    return run_tokenizer(source.tokenizer, source.path / "tokenizer.json", config)


def run_tokenizer(content: bytes, path: Path, config: RunConfig) -> Tokenizer:
    """The tokenizer of a run from the content of its file. Raises RunDirError when it is damaged,
    or is another one's."""
    fix = (
        "Restore it from a copy, or copy tokenizer.json of the run's corpus "
        f"(data.cache_dir={config.data.cache_dir})."
    )
    try:
        tokenizer = Tokenizer.from_bytes(content)
    except ValueError as error:
        raise RunDirError(f"{path} is not a tokenizer: {error}", fix=fix) from error
    if tokenizer.vocab_size != config.tokenizer.vocab_size:
        what = (
            f"{path} has {tokenizer.vocab_size} entries, and the run was trained with "
            f"{config.tokenizer.vocab_size}"
        )
        raise RunDirError(what, fix=fix)
    return tokenizer


def _within(tokenizer: Tokenizer, source: Source, config: RunConfig) -> Tokenizer:
    if tokenizer.vocab_size > config.vocab_size:
        raise ConfigError(
            f"the tokenizer of {source.name} has {tokenizer.vocab_size} entries, and the embedding "
            f"{config.vocab_size} rows",
            f"from {source.word}",
            "Copy tokenizer.json and the weights again from one place.",
        )
    return tokenizer
