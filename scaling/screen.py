"""What fits a screen: tables that leave out whole columns, text that wraps between words, and small
curves."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.segment import Segment
    from rich.style import Style
    from rich.text import Text

GAP = 2
"""Blanks between two columns."""
_COMFORTABLE = 24
"""Width down to which a name wraps before a column is left out for it."""
_NARROWEST = 8
_BLOCKS = "▁▂▃▄▅▆▇█"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""All but newline and tab, and what turns the direction of text or is no character."""


def visible(text: str) -> str:
    r"""Anybody's text, without what would make a terminal do things: ESC is shown as \x1b."""
    return _CONTROL.sub(lambda found: _escaped(ord(found.group())), text)


def _escaped(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


@dataclass(frozen=True)
class Column:
    """One column. keep: 0 is never left out; of the others the highest goes first, but before
    all of them what is the same in every row. wraps: at the ends of words."""

    heading: str
    keep: int = 0
    left: bool = False
    wraps: bool = False


class FittedTable:
    """A table that keeps the columns that matter, at any width, and says which it leaves out.

    Cells are never cut. Where even the columns that are always kept are too wide, each row becomes
    a few lines.
    """

    def __init__(self, columns: Sequence[Column], title: str = "", note: str = "") -> None:
        self.columns, self.title, self.note = tuple(columns), title, note
        self.rows: list[tuple[Any, ...]] = []
        self._measured: dict[int, int] = {}

    def add(self, *cells: str | Text) -> None:
        assert len(cells) == len(self.columns), (cells, self.columns)
        self.rows.append(tuple(_shown(cell) for cell in cells))
        self._measured.clear()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Any]:
        from rich.text import Text

        width = options.max_width
        kept = self._kept(width)
        if self._width(kept, self._least) > width:
            yield Text("\n".join(self._blocks(width)))
            return
        yield from self._segments(console, self._widths(kept, width))
        if self.note:
            yield Text("\n".join(textwrap.wrap(self.note, width)))
        missing = [
            self._missing(number) for number in range(len(self.columns)) if number not in kept
        ]
        if missing:
            note = f"Left out at {width} columns: {', '.join(missing)}."
            yield Text("\n".join(textwrap.wrap(note, width)), style="dim")

    def _texts(self, number: int) -> Iterator[str]:
        yield self.columns[number].heading
        yield from (str(row[number]) for row in self.rows)

    def _missing(self, number: int) -> str:
        heading = self.columns[number].heading
        return f"{heading} (all {self.rows[0][number]})" if self._constant(number) else heading

    def _constant(self, number: int) -> bool:
        """Whether the column tells no row from another."""
        return len(self.rows) > 1 and len({str(row[number]) for row in self.rows}) == 1

    def _natural(self, number: int) -> int:
        from rich.cells import cell_len

        if number not in self._measured:
            self._measured[number] = max(
                cell_len(line) for text in self._texts(number) for line in text.split("\n")
            )
        return self._measured[number]

    def _comfortable(self, number: int) -> int:
        natural = self._natural(number)
        return (
            min(natural, max(_COMFORTABLE, self._least(number)))
            if self.columns[number].wraps
            else natural
        )

    def _least(self, number: int) -> int:
        natural = self._natural(number)
        if not self.columns[number].wraps:
            return natural
        longest = max(
            (len(part) for text in self._texts(number) for part in _parts(text)), default=0
        )
        return min(natural, max(_NARROWEST, min(longest, _COMFORTABLE)))

    def _width(self, numbers: Sequence[int], of: Any) -> int:
        return sum(of(number) for number in numbers) + GAP * (len(numbers) - 1)

    def _kept(self, width: int) -> list[int]:
        kept = list(range(len(self.columns)))
        while self._width(kept, self._comfortable) > width:
            droppable = [number for number in kept if self.columns[number].keep]
            if not droppable:
                break
            kept.remove(
                max(
                    droppable,
                    key=lambda number: (self._constant(number), self.columns[number].keep, number),
                )
            )
        return kept

    def _widths(self, kept: Sequence[int], width: int) -> dict[int, int]:
        """Width of each column: what it needs at least, and of what is left what it would like."""
        spare, widths = width - self._width(kept, self._least), {}
        for number in kept:
            least = self._least(number)
            more = min(spare, self._natural(number) - least)
            widths[number], spare = least + more, spare - more
        return widths

    def _segments(self, console: Console, widths: dict[int, int]) -> Iterator[Segment]:
        """The table itself. Its widths are known, so that rich, which would measure each cell
        several times, only prints it: 500 rows take a tenth of the time."""
        from rich.segment import Segment

        total = sum(widths.values()) + GAP * (len(widths) - 1)
        bold = console.get_style("bold")
        for line in textwrap.wrap(self.title, max(total, _NARROWEST)):
            yield from (Segment(line, bold), Segment.line())
        headings = [wrapped(self.columns[n].heading, w) for n, w in widths.items()]
        height = max(len(lines) for lines in headings)
        headings = [[""] * (height - len(lines)) + lines for lines in headings]
        yield from self._row([(lines, bold) for lines in headings], widths)
        yield from (Segment("\u2500" * total), Segment.line())
        for row in self.rows:
            cells: list[tuple[list[str], Style | None]] = []
            for number, width in widths.items():
                text = str(row[number])
                style = getattr(row[number], "style", "")
                lines = wrapped(text, width) if self.columns[number].wraps else text.split("\n")
                cells.append((lines, console.get_style(style) if style else None))
            yield from self._row(cells, widths)

    def _row(
        self, cells: Sequence[tuple[list[str], Style | None]], widths: dict[int, int]
    ) -> Iterator[Segment]:
        from rich.cells import cell_len
        from rich.segment import Segment

        last = len(cells) - 1
        for line in range(max(len(lines) for lines, _ in cells)):
            for place, (number, (lines, style)) in enumerate(zip(widths, cells, strict=True)):
                text = lines[line] if line < len(lines) else ""
                blanks = " " * (widths[number] - cell_len(text))
                column = self.columns[number]
                text = text + blanks if column.left or column.wraps else blanks + text
                yield Segment(text, style)
                if place < last:
                    yield Segment(" " * GAP)
            yield Segment.line()

    def _blocks(self, width: int) -> Iterator[str]:
        """Each row as a paragraph, where no table fits."""
        if self.title:
            yield from textwrap.wrap(self.title, width)
        for row in self.rows:
            pairs = [
                f"{column.heading} {cell}"
                for column, cell in zip(self.columns, row, strict=True)
                if str(cell)
            ]
            yield from textwrap.wrap(", ".join(pairs), width, subsequent_indent="  ")
        if self.note:
            yield from textwrap.wrap(self.note, width)


def _shown(cell: str | Text) -> str | Text:
    if isinstance(cell, str):
        return visible(cell)
    from rich.text import Text

    return Text(visible(cell.plain), style=cell.style)


def _parts(text: str) -> list[str]:
    """The pieces between which a name may be broken, each with its own end."""
    return re.findall(r"[^\s/,-]*[/,-]+|[^\s/,-]+\s*|\s+", text)


def wrapped(text: str, width: int) -> list[str]:
    """`text` in lines of at most `width`, broken behind words and / , - and in a longer word behind
    _ or anywhere."""
    lines, line = [], ""
    for paragraph in text.split("\n"):
        for part in _parts(paragraph):
            if len(line) + len(part.rstrip()) > width and line:
                lines.append(line.rstrip())
                line = ""
            while len(part.rstrip()) > width:
                cut = part.rfind("_", 0, width) + 1 or width
                lines.append(part[:cut])
                part = part[cut:]
            line += part
        lines.append(line.rstrip())
        line = ""
    return lines


def fitted_lines(text: str, width: int) -> list[str]:
    """Lines wrapped between words; what is indented stays so, and continues a little further in."""
    found: list[str] = []
    for line in text.split("\n"):
        indent = line[: len(line) - len(line.lstrip())]
        options: Any = {"break_long_words": False, "break_on_hyphens": False}
        found += textwrap.wrap(
            line.strip(), width, initial_indent=indent, subsequent_indent=indent + "  ", **options
        ) or [""]
    return found


def sparkline(values: Iterable[float], width: int = 12) -> str:
    """The course of some numbers in `width` small bars at most, the lowest to the highest; nothing
    of fewer than two."""
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2:
        return ""
    count = min(width, len(finite))
    chosen = [finite[round(i * (len(finite) - 1) / (count - 1))] for i in range(count)]
    low, high = min(chosen), max(chosen)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((value - low) * scale)] for value in chosen)
