"""Private parts of Ray: all are listed with a reason, all exist, and a run continues without those
of the embedded trainer."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

import scaling
from scaling.channel.messages import Remark
from scaling.errors import LaunchError
from scaling.launch.ray.embedded import EmbeddedTrainer
from scaling.launch.ray.private import PRIVATE, Private, missing
from scaling.launch.ray.trainer import RayLaunch, _trainer_class
from tests.support.configs import composed

PACKAGE = Path(scaling.__file__).parent


def imported() -> set[tuple[str, str, str]]:
    """(file, module, name) of what is imported from private modules of Ray, or by a private
    name."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ray"):
                for alias in node.names:
                    if "._" in f".{node.module}.{alias.name}":
                        file = str(path.relative_to(PACKAGE))
                        found.add((file, node.module or "", alias.name))
    return found


@pytest.mark.parametrize("part", PRIVATE, ids=lambda part: f"{part.used_by}: {part}")
def test_every_private_part_exists_and_has_a_reason(part: Private) -> None:
    assert part.exists
    assert part.reason


def test_every_private_import_is_listed_and_behind_the_one_door() -> None:
    listed = {
        (f"launch/ray/{part.used_by}.py", part.module, part.name.split(".")[0]) for part in PRIVATE
    }
    assert len(imported()) > 10
    assert imported() <= listed


def test_a_part_that_ray_lacks_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(DataParallelTrainer, "_create_default_callbacks")
    (lacking,) = missing("embedded")
    assert lacking.endswith("DataParallelTrainer._create_default_callbacks")
    assert missing("elastic") == []
    assert not Private("ray.no_such_module", "name", "embedded", "").exists


def test_the_embedded_trainer_falls_back_to_the_public_one_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = RayLaunch(lambda *_: {}, {"run_dir": str(tmp_path)}, composed().cluster, (2,))
    assert type(launch._trainer()) is EmbeddedTrainer
    assert launch._own_messages == []
    monkeypatch.delattr("ray.train.v2._internal.constants.get_env_vars_to_propagate")
    assert type(launch._trainer()) is DataParallelTrainer
    (warning,) = launch._own_messages
    assert isinstance(warning, Remark)
    assert "get_env_vars_to_propagate" in warning.line


def test_an_elastic_run_says_which_part_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(DataParallelTrainer, "_initialize_and_run_controller")
    with pytest.raises(LaunchError, match="_initialize_and_run_controller, which this Ray lacks"):
        _trainer_class(False, (1, 2), lambda _: None)
