"""Weights that a run begins with: those of its source, a part at a time on each rank."""

from __future__ import annotations

from torch import Tensor

from scaling.config.run_config import RunConfig
from scaling.model.initialise import Given
from scaling.parallel.part import Part
from scaling.weights.reader import Reader, open_reader
from scaling.weights.source import find_source


def given_weights(config: RunConfig) -> Given | None:
    """Gives a part of a parameter from the source of `init_from`; None for a run without one.

    A rank asks for what it holds, whatever the layout, so none reads the whole. A parameter that
    the source lacks has none, and gets its random values.
    """
    reader = _reader(config)
    if reader is None:
        return None
    missing = frozenset(reader.missing)

    def given(name: str, part: Part) -> Tensor | None:
        return None if name in missing else reader.read(name, part)

    return given


def check_source(config: RunConfig) -> list[str]:
    """Notes on what of the source of `init_from` is initialised or left out.

    Raises ConfigError or CheckpointError for weights that are not those of the model.
    """
    reader = _reader(config)
    if reader is None:
        return []
    found = []
    if reader.missing:
        found.append(f"Initialised, because the source lacks them: {', '.join(reader.missing)}.")
    if reader.extra:
        found.append(f"Left out of the source: {', '.join(reader.extra)}.")
    return found


def _reader(config: RunConfig) -> Reader | None:
    word = config.init_from.source
    if word is None:
        return None
    source = find_source(word, config.run.root, lambda text: None)
    return open_reader(source, config, missing=config.init_from.missing)
