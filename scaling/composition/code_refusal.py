"""Configurations are data: nothing that one names is imported, called or unpickled.

Hydra itself makes objects of what its own section names while a command starts (callbacks, plugins,
handlers of logs), and offers to repeat a pickled job. Its policy for such targets is a list of
known dangers, so none is let through to it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig
from omegaconf.errors import OmegaConfBaseException

from scaling.composition.hydra_parts import (
    ConfigLoaderImpl,
    ConfigRepository,
    ConfigSearchPath,
    reference_text,
)
from scaling.errors import ConfigError

_PLUGINS = {
    "launcher._target_": (
        "hydra_plugins.scaling_study.StudyLauncher",
        "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
    ),
    "sweeper._target_": (
        "hydra_plugins.scaling_study.StudySweeper",
        "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
    ),
}
"""Values allowed in Hydra's section: ours, and those that Hydra falls back on."""
_MAKERS = ("_target_", "()")
"""Keys whose value is called: by Hydra's instantiate, and by logging.config."""
_EMPTY = ("callbacks", "job.env_set")
"""Called whatever they are, and what other programs load (LD_PRELOAD)."""
_STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
"""The only names that logs may import (ext://) or look up among what logging.config made (cfg://):
those of Hydra's own logs."""
_KEPT_WHOLE = ("job_logging.", "hydra_logging.", "runtime.")
"""What logs are made of: a reference here that leads nowhere yet could later make a name to
import."""
_LATER = "${hydra.runtime.output_dir}/"
"""The start of the names of Hydra's own log files: a path, as soon as it is known."""
_PACKAGES = ("hydra", "hydra_plugins", "scaling")
"""Packages whose configurations may be searched: Hydra's, those of its installed plugins, and
ours."""
_RERUN = "--experimental-rerun"


def refuse_pickled_jobs(words: Sequence[str]) -> None:
    """Raises ConfigError for the option with which Hydra unpickles a file, in full or
    abbreviated."""
    for word in words:
        option = word.partition("=")[0]
        if len(option) > 2 and _RERUN.startswith(option):
            raise ConfigError(
                f"{option} unpickles a file, which runs whatever it holds",
                "from the command line",
                "Leave it out.",
            )


@contextlib.contextmanager
def inert_configurations() -> Iterator[None]:
    """While it lasts, Hydra composes no configuration that names what would be imported or called.
    Raises ConfigError."""
    original, search = ConfigLoaderImpl.load_configuration, ConfigRepository.initialize_sources

    def load(loader: ConfigLoaderImpl, *args: Any, **options: Any) -> DictConfig:
        composed = original(loader, *args, **options)
        refuse_targets(composed)
        return composed

    def initialize(repository: ConfigRepository, config_search_path: ConfigSearchPath) -> None:
        refuse_packages([str(element.path) for element in config_search_path.get_path()])
        search(repository, config_search_path)

    ConfigLoaderImpl.load_configuration = load  # type: ignore[assignment, method-assign]
    ConfigRepository.initialize_sources = initialize  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        ConfigLoaderImpl.load_configuration = original  # type: ignore[method-assign]
        ConfigRepository.initialize_sources = search  # type: ignore[method-assign]


def refuse_packages(search_path: Sequence[str]) -> None:
    """Raises ConfigError for a package among the places to search for configurations, for Hydra
    imports it to look into it."""
    for place in search_path:
        scheme, _, name = place.partition("://")
        if scheme == "pkg" and re.split(r"[./]", name)[0] not in _PACKAGES:
            raise ConfigError(
                f"{place} would be imported, and configurations are data",
                "from hydra.searchpath or --config-path",
                "Name its directory, as file://DIRECTORY.",
            )


def refuse_targets(composed: DictConfig) -> None:
    """Raises ConfigError for anything in Hydra's section that would be imported and called,
    references resolved."""
    for key, value in _leaves(composed.hydra):
        last = key.rpartition(".")[2]
        calls = (
            last in _MAKERS
            or (last == "class" and not _of_logging(value))
            or key.startswith(_EMPTY)
        )
        if (calls or _imports(key, str(value))) and value not in _PLUGINS.get(key, ()):
            raise ConfigError(
                f"hydra.{key}={value} would be run, and configurations are data",
                "from the command line or a file that it names",
                "Leave it out; environment variables belong into the shell."
                if "env_set" in key
                else "Leave it out.",
            )


def _imports(key: str, value: str) -> bool:
    """Whether logging.config would take this for the name of an object, or might once its
    references are known."""
    named = value.startswith(("ext://", "cfg://")) and value not in _STREAMS
    return named or ("${" in value and key.startswith(_KEPT_WHOLE) and not value.startswith(_LATER))


def _of_logging(name: Any) -> bool:
    """Whether this is a class of the standard library's logging itself, not of what that
    imports."""
    parts = str(name).split(".")
    return (
        parts[0] == "logging"
        and parts[-1].endswith(("Handler", "Formatter", "Filter"))
        and len(parts) == 2
    )


def _leaves(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values; those of a reference are what it leads to, or where that is not known
    yet, its text."""
    if not isinstance(node, DictConfig | ListConfig):
        yield name, node
        return
    keys: Any = node if isinstance(node, DictConfig) else range(len(node))
    container: Any = node
    for key in keys:
        try:
            inner = container[key]
        except OmegaConfBaseException:
            inner = reference_text(container, key)
        yield from _leaves(inner, f"{name}.{key}" if name else str(key))
