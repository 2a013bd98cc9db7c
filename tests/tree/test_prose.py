"""The prose of the source: docstrings that open with a subject or a verb, lines at most 100
wide."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tools.code_figures import PREPOSITIONS, docstrings, figures, first_word, main

ROOT = Path(__file__).parents[2]
TREES = ("scaling", "hydra_plugins", "tests", "tools", "cluster")


def opening_with_a_preposition(directory: Path) -> list[str]:
    """Places of docstrings that open with a preposition, in all files of a directory."""
    return [
        f"{file.relative_to(directory.parent)}:{doc.lineno}"
        for file in sorted(directory.rglob("*.py"))
        for doc in docstrings(ast.parse(file.read_text(encoding="utf-8")))
        if first_word(str(doc.value)) in PREPOSITIONS
    ]


@pytest.mark.parametrize("tree", TREES)
def test_no_docstring_opens_with_a_preposition(tree: str) -> None:
    assert opening_with_a_preposition(ROOT / tree) == []


def test_what_is_counted(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        '"""Of what it knows."""\n\nx = 1  # one\n"""By the paper."""\n\n\n'
        f"def f():\n    '''Return 2.'''\n    return '{'a' * 100}'\n"
    )
    (tmp_path / "b.py").write_text("def g(): ...\n")
    found = figures(tmp_path)
    name = tmp_path.name
    assert opening_with_a_preposition(tmp_path) == [f"{name}/a.py:1", f"{name}/a.py:4"]
    assert found["docstrings"] == "3"
    assert found['docstrings that open with "Of"'] == "1"
    assert found["docstrings that open with a preposition"] == "2"
    assert found["comments per 100 lines"] == "10.00"
    assert found["lines over 100"] == "1"


def test_the_command_prints_its_help_and_refuses_a_directory_without_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--help"])
    assert "Usage: python tools/code_figures.py" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="holds no Python files"):
        main([str(tmp_path)])
