"""Private parts of DeepSpeed: all are listed with a reason, on the page too, and all exist."""

from __future__ import annotations

import ast
from pathlib import Path

import scaling
from scaling.engine.deepspeed.private import LEFT_BEHIND, PRIVATE, Private
from scaling.parallel.grid import Ranks
from tests.support.ranks import run_ranks

DOOR = Path(scaling.__file__).parent / "engine" / "deepspeed"
PAGE = Path(__file__).parents[2] / "docs" / "internals.md"
DOCUMENTED = {
    ("deepspeed", "ops"),
    ("deepspeed.utils", "logger"),
    ("deepspeed.pipe", "DualPipeVModule"),
    ("deepspeed.pipe", "LayerSpec"),
    ("deepspeed.pipe", "PipelineModule"),
    ("deepspeed.runtime.zero", "GatheredParameters"),
    ("deepspeed.runtime.zero", "Init"),
}
"""Imports of names that DeepSpeed's own documentation has."""


def _missing(ranks: Ranks) -> list[str]:
    return [str(part) for part in PRIVATE if not part.exists]


def test_every_private_part_exists() -> None:
    assert run_ranks(_missing, 1) == [[]]


def _found_out(ranks: Ranks) -> list[bool]:
    """Whether parts that DeepSpeed lacks exist, one of each sort."""
    absent = (
        Private("deepspeed.no_such_module", "name", "zero", ""),
        Private("deepspeed.runtime.zero.stage3", "DeepSpeedZeroOptimizer_Stage3._gone", "zero", ""),
        Private("deepspeed.runtime.zero.stage3", "_gone", "zero", "", set_on_instances=True),
    )
    return [part.exists for part in absent]


def test_a_part_that_deepspeed_lacks_is_found_missing() -> None:
    assert run_ranks(_found_out, 1) == [[False, False, False]]


def test_every_private_import_is_listed_for_its_module() -> None:
    listed = {(part.used_by, part.module, part.name.split(".")[0]) for part in PRIVATE}
    imported = {
        (path.stem, node.module or "", alias.name)
        for path in DOOR.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "deepspeed"
        for alias in node.names
    }
    private = {found for found in imported if found[1:] not in DOCUMENTED}
    assert len(private) >= 3
    assert private <= listed


def test_every_part_is_used_where_the_list_says_and_is_on_the_page() -> None:
    page = PAGE.read_text()
    for part in PRIVATE:
        name = part.name.split(".")[-1]
        if part not in LEFT_BEHIND:  # those are reached through the list itself
            assert name in (DOOR / f"{part.used_by}.py").read_text(), part
        assert f"`{name}`" in page or f".{name}`" in page, part
        assert part.reason
