"""The undocumented parts of Hydra that the package uses are there, and are reached from one
module."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import hydra
import pytest

from scaling.composition.hydra_parts import PARTS, attach_study, get_args_parser
from scaling.composition.known import HYDRA_FLAGS

ROOT = Path(__file__).parents[2]
DOCUMENTED = {
    "hydra.core.config_search_path",
    "hydra.core.config_store",
    "hydra.core.hydra_config",
    "hydra.core.utils",
}
"""Modules that Hydra's manual names, among those of hydra.core."""


@pytest.mark.parametrize(("owner", "name"), PARTS, ids=lambda part: getattr(part, "__name__", part))
def test_each_part_is_there(owner: Any, name: str) -> None:
    assert hasattr(owner, name) or name in getattr(owner, "__annotations__", {})


def test_the_function_that_hydra_wraps_is_what_a_launcher_is_given() -> None:
    @hydra.main(version_base="1.3")
    def main(config: Any) -> None: ...

    def launch(jobs: Any) -> None: ...

    attach_study(main, launch)
    assert main.__wrapped__.study is launch


def test_the_sweeper_splits_a_sweep_into_jobs() -> None:
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    assert callable(BasicSweeper.split_arguments)


def test_the_parser_of_flags_reports_errors_by_a_method() -> None:
    parser = get_args_parser()
    assert callable(parser.error)
    assert parser.parse_known_args(["--nonsense"])[1] == ["--nonsense"]


def test_the_listed_flags_are_those_of_hydra() -> None:
    options = [option for action in get_args_parser()._actions for option in action.option_strings]
    assert {option for option in options if option.startswith("--")} == set(HYDRA_FLAGS)


def test_one_module_reaches_for_them() -> None:
    found = {
        str(path.relative_to(ROOT))
        for folder in ("scaling", "hydra_plugins")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        and node.module is not None
        and node.module.startswith(("hydra._internal", "hydra.core"))
        and node.module not in DOCUMENTED
    }
    assert found == {"scaling/composition/hydra_parts.py", "hydra_plugins/scaling_study.py"}
