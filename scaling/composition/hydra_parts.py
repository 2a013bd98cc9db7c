"""Every part of Hydra that is not in its documentation, in one place.

A new version of Hydra may change them. PARTS lists each with its reason, and a test asserts that
it is there. One is imported elsewhere: Hydra executes the modules of its own plugins again when it
looks for plugins, so hydra_plugins/scaling_study.py takes BasicSweeper after that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.utils import get_args_parser
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from omegaconf import DictConfig
from omegaconf.basecontainer import BaseContainer

__all__ = [
    "PARTS",
    "ConfigLoaderImpl",
    "ConfigRepository",
    "ConfigSearchPath",
    "GlobalHydra",
    "Override",
    "OverridesParser",
    "Quote",
    "QuotedString",
    "attach_study",
    "get_args_parser",
    "reference_text",
]

PARTS: dict[tuple[Any, str], str] = {
    (ConfigLoaderImpl, "load_configuration"): "a composed configuration is checked before Hydra"
    " makes objects of its own section; no callback comes early enough",
    (ConfigLoaderImpl, "load_sweep_config"): "the jobs of a study share what their files compose",
    (ConfigLoaderImpl, "_apply_overrides_to_config"): "values of jobs are set without reading their"
    " files again",
    (ConfigRepository, "initialize_sources"): "a search path is checked before Hydra imports it",
    (
        ConfigRepository,
        "group_exists",
    ): "tells a word that chooses a file from one that sets a value",
    (ConfigSearchPath, "get_path"): "the places that Hydra is about to search",
    (GlobalHydra, "instance"): "a study composes within a command; Hydra allows one at a time",
    (GlobalHydra, "clear"): "as above",
    (OverridesParser, "create"): "words are parsed as Hydra parses them, for errors and sweeps",
    (OverridesParser, "parse_overrides"): "as above",
    (Override, "key_or_group"): "the name in such a word",
    (QuotedString, "with_quotes"): "a value is quoted as Hydra reads it back",
    (BaseContainer, "_get_node"): "the text of a reference that leads nowhere yet",
}
"""(owner, attribute) -> why it is used."""


def attach_study(main: Callable[[], None], launch: Callable[[Any], None]) -> None:
    """Give the task function of `hydra.main` the function that the launcher of a study calls.

    Hydra hands a launcher the function that it wraps, and nothing else of ours.
    """
    wrapped = main.__wrapped__  # type: ignore[attr-defined]
    vars(wrapped)["study"] = launch


def reference_text(container: DictConfig | Any, key: Any) -> str:
    """The text of an entry of a container, its references unresolved."""
    return str(container._get_node(key))
