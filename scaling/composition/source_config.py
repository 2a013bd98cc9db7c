"""The configuration of a source: what its settings make of the default one."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

from scaling.composition.compose import composed_of
from scaling.composition.from_source import n_entries, name_of
from scaling.config.run_config import RunConfig
from scaling.weights.source import GROUPS, Source


def config_of(source: Source) -> RunConfig:
    """A whole configuration for the model of a source; that of a run is its own.

    What does not follow from the source (data, optimiser, cluster) is as in conf/config.yaml.
    """
    if source.config is not None:
        return source.config
    composed = OmegaConf.to_container(composed_of([]), resolve=True)
    assert isinstance(composed, dict)
    values: dict[str, Any] = {str(key): value for key, value in composed.items() if key != "hydra"}
    for group in GROUPS:
        values[group] = {**source.settings[group]}
    values["model"] |= {"name": name_of(source)}
    values["train"] |= {"n_tokens": 1, "sample_tokens": 0}
    values["train"] |= source.settings.get("train", {})
    values["tokenizer"] = source.settings.get("tokenizer") or {
        "kind": "hf",
        "name": str(source.path),
        "vocab_size": min(n_entries(source), source.settings["model"]["vocab_size"]),
        "special_tokens": "own",
        "lossy": "allow",
    }
    return RunConfig.model_validate(values)
