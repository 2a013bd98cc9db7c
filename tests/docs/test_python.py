"""The Python code of the pages imports what exists."""

from __future__ import annotations

import ast
import importlib
import re
import textwrap

import pytest

from tests.support.documented import PAGES, ROOT

_FENCE = re.compile(r"^ *```python\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
IMPORTS = sorted(
    {
        (str(page.relative_to(ROOT)), node.module, alias.name)
        for page in [*PAGES, ROOT / "CONTRIBUTING.md"]
        for block in _FENCE.findall(page.read_text(encoding="utf-8"))
        for node in ast.walk(ast.parse(textwrap.dedent(block)))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("scaling.")
        for alias in node.names
    }
)


@pytest.mark.parametrize(("page", "module", "name"), IMPORTS)
def test_what_a_page_imports_exists(page: str, module: str, name: str) -> None:
    assert hasattr(importlib.import_module(module), name), f"{page}: {module} has no {name}"


def test_the_pages_import_something() -> None:
    assert ("CONTRIBUTING.md", "scaling.config.plugins", "Plugin") in IMPORTS
