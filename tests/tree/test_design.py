"""The tables of docs/design.md: the tree, and the file names that occur more than once."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from scaling.commands.verbs import VERBS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "scaling"


def first_cells(head: str) -> list[str]:
    """Words in backticks in the first column of the table of docs/design.md with this heading."""
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    table = page.split(f"{head}\n", 1)[1].split("\n\n", 1)[0]
    rows = table.splitlines()[1:]
    return [word for row in rows for word in re.findall("`([^`]+)`", row.split("|")[1])]


def test_the_tree_names_every_package_floor_module_and_door() -> None:
    packages = {f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")}
    modules = {path.stem for path in PACKAGE.glob("[!_]*.py")}
    words = first_cells("| package | knows |")
    assert sorted(words) == sorted(packages | modules)
    assert set(words[-len(VERBS) :]) == set(VERBS)


def test_every_repeated_file_name_is_explained() -> None:
    counts = Counter(path.name for path in PACKAGE.rglob("[!_]*.py"))
    repeated = sorted(name for name, count in counts.items() if count > 1)
    assert sorted(first_cells("| file name | means |")) == repeated
