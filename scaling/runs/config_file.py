"""config.yaml of a run: the configuration that it began with, written once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling.config.recorded import RECORDED
from scaling.errors import RunDirError
from scaling.runs.files import disk_error, write_atomic

if TYPE_CHECKING:
    from scaling.config.run_config import RunConfig


def write_config(path: Path, config: RunConfig) -> None:
    """Write the file once; later, check that it describes the same mathematics. Raises RunDirError
    when not."""
    import yaml

    if not path.exists():
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        write_atomic(path, text.encode())
        return
    written = read_config(path)
    if written.semantic_hash != config.semantic_hash:
        changes = _differences(written.semantic(), config.semantic())
        raise RunDirError(
            f"{path.parent} holds another run: {'; '.join(changes)}",
            str(path),
            "Give the new run its own directory with run.name=NAME, or repeat the values that "
            "this one began with.",
        )


def read_config(path: Path) -> RunConfig:
    """The configuration that the run began with. Raises RunDirError when the file is absent or
    damaged."""
    # here: pydantic's models take half a second, and a list of runs needs none of them
    import yaml

    from scaling.config.run_config import RunConfig

    try:
        return RunConfig.model_validate(
            yaml.safe_load(path.read_text(encoding="utf-8")), context=RECORDED
        )
    except OSError as error:
        raise disk_error("read", path, error) from error
    except (yaml.YAMLError, ValueError) as error:
        fix = "Restore the file, or begin again with run.name=NAME."
        raise RunDirError(
            f"{path} is no configuration of this version: {error}", fix=fix
        ) from error


def _flat(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict):
        for key, inner in tree.items():
            yield from _flat(inner, f"{name}.{key}" if name else key)
    else:
        yield name, tree


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Each leaf that differs, as "optim.lr was 0.001 and is 0.002 now"."""
    old, new = dict(_flat(before)), dict(_flat(now))
    names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    return [f"{name} was {old.get(name)} and is {new.get(name)} now" for name in names]
