"""Figures of the source: docstrings, comments, widths, lengths of files and functions.

Usage: python tools/code_figures.py [DIRECTORY ...]

Prints one column per directory (default: scaling), so that two checkouts stand side by side.
"""

from __future__ import annotations

import ast
import io
import statistics
import sys
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path

_WORDS = """
    about above after against along among around as at before behind below beside between beyond
    by during except for from in inside into like near of off on onto out outside over per since
    through till to towards under until up upon via with within without
"""
PREPOSITIONS = frozenset(_WORDS.split())
WIDTH = 100


def docstrings(tree: ast.Module) -> Iterator[ast.Constant]:
    """Docstrings of the module, its classes and functions, and texts under attributes."""
    holders = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(tree):
        for statement in node.body if isinstance(node, holders) else []:
            value = statement.value if isinstance(statement, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield value


def first_word(text: str) -> str:
    words = text.split(maxsplit=1)
    return words[0].strip(":,.").lower() if words else ""


def comments(text: str) -> int:
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return sum(token.type == tokenize.COMMENT for token in tokens)


def figures(directory: Path) -> dict[str, str]:
    """The figures of every Python file under `directory`."""
    paths = sorted(directory.rglob("*.py"))
    texts = [path.read_text(encoding="utf-8") for path in paths]
    trees = [ast.parse(text) for text in texts]
    openings = [first_word(str(doc.value)) for tree in trees for doc in docstrings(tree)]
    lines = [line for text in texts for line in text.splitlines()]
    files = [len(text.splitlines()) for text in texts]
    functions = [
        (node.end_lineno or node.lineno) - node.lineno + 1
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return {
        "files": str(len(files)),
        "lines": str(len(lines)),
        "docstrings": str(len(openings)),
        'docstrings that open with "Of"': str(openings.count("of")),
        "docstrings that open with a preposition": str(sum(w in PREPOSITIONS for w in openings)),
        "comments per 100 lines": f"{100 * sum(map(comments, texts)) / len(lines):.2f}",
        f"lines over {WIDTH}": str(sum(len(line) > WIDTH for line in lines)),
        '"fmt: skip"': str(sum(line.endswith("fmt: skip") for line in lines)),
        "lines of a file, median and 90th percentile": _spread(files),
        "lines of a function, median and 90th percentile": _spread(functions),
        "functions over 60 lines": str(sum(length > 60 for length in functions)),
    }


def _spread(lengths: Sequence[int]) -> str:
    return f"{statistics.median(lengths):.0f}, {statistics.quantiles(lengths, n=10)[-1]:.0f}"


def main(words: Sequence[str]) -> None:
    if {"-h", "--help"} & set(words):
        print(__doc__)
        return
    directories = [Path(word) for word in words or ["scaling"]]
    for directory in directories:
        if not any(directory.rglob("*.py")):
            sys.exit(f"{directory} holds no Python files")
    columns = [figures(directory) for directory in directories]
    for name in columns[0]:
        print(f"{name:<50}" + "".join(f"{column[name]:>14}" for column in columns))


if __name__ == "__main__":
    main(sys.argv[1:])
