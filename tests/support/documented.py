"""The commands that README.md, docs/ and cluster/README.md show, as words, in the order of each
page."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "cluster" / "README.md", *(ROOT / "docs").rglob("*.md")])
_SHELLS = ("bash", "sh", "shell", "console")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(
    r"`((?:python3? |scaling |make |(?:\w+=\S+ )?(?:tools|cluster)/[^\s`]+)[^`\n]*)`"
)
_ASSIGNMENT = re.compile(r"[A-Z_]+=\S*")


@dataclass(frozen=True)
class Shown:
    """A simple command: what stands between |, && and the line's ends, without assignments before
    it."""

    page: str
    words: tuple[str, ...]

    @property
    def text(self) -> str:
        return shlex.join(self.words)


def shown_commands() -> list[Shown]:
    """Every command once, where it is shown first."""
    found = [
        Shown(str(page.relative_to(ROOT)), words)
        for page in PAGES
        for words in commands_of(page.read_text())
    ]
    return list({shown.words: shown for shown in reversed(found)}.values())[::-1]


def commands_of(text: str) -> Iterator[tuple[str, ...]]:
    """Those of the fences for a shell or for nothing in particular, then those in the prose."""
    for language, block in _FENCE.findall(text):
        lines = block.replace("\\\n", " ").splitlines()
        if language in _SHELLS or (
            not language and all(_is_command(line) for line in lines if line.strip())
        ):
            for line in lines:
                yield from _simple(line)
    for span in _SPAN.findall(_FENCE.sub("", text)):
        yield from _simple(span)


def _is_command(line: str) -> bool:
    return (
        re.match(r"(\w+=\S+ )?(python3?|scaling|make|pip|tools/|cluster/)\b", line.strip())
        is not None
    )


def _simple(line: str) -> Iterator[tuple[str, ...]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) <= set("|&;"):
            while words and _ASSIGNMENT.fullmatch(words[0]):
                words.pop(0)
            if words:
                yield tuple(words)
            words = []
        else:
            words.append(word)
