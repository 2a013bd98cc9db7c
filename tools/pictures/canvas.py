"""A drawing page, 100 units wide with y downwards, for boxes, arrows and text. Readable at a width
of 800 pixels."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

# Okabe and Ito 2008: told apart by colour-blind readers and in grey print.
BLUE, VERMILION, GREEN, PURPLE, YELLOW, SKY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
)
QUIET, INK, FAINT, LINE = "#6B7280", "#1F2937", "#F3F4F6", "#9CA3AF"
RANKS = (BLUE, YELLOW, GREEN, PURPLE)
"""One colour for each of four ranks."""
_DPI = 160  # of ten inches in width: two pixels of the file to one of the page


class Canvas:
    def __init__(self, height: float, title: str) -> None:
        self.figure = Figure(figsize=(10, height / 10), dpi=_DPI, facecolor="white")
        self._axes = self.figure.add_axes((0, 0, 1, 1))
        self._axes.set(xlim=(0, 100), ylim=(height, 0))
        self._axes.axis("off")
        self.text(2, 2.6, title, size=13, weight="bold", align="left")

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 10.5,
        colour: str = INK,
        weight: str = "normal",
        align: str = "center",
        turned: bool = False,
    ) -> None:
        self._axes.text(
            x,
            y,
            text,
            size=size,
            color=colour,
            weight=weight,
            ha=align,
            va="center",
            rotation=90 if turned else 0,
            linespacing=1.25,
        )

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        text: str = "",
        *,
        fill: str = "white",
        edge: str = LINE,
        colour: str = INK,
        size: float = 10,
        turned: bool = False,
        dashed: bool = False,
    ) -> None:
        """Draw a box. x, y: its upper left corner."""
        style = (0, (3, 2)) if dashed else "solid"
        self._axes.add_patch(
            Rectangle(
                (x, y), width, height, facecolor=fill, edgecolor=edge, linewidth=1, linestyle=style
            )
        )
        if text:
            self.text(x + width / 2, y + height / 2, text, size=size, colour=colour, turned=turned)

    def arrow(
        self,
        start: tuple[float, float],
        end: tuple[float, float],
        *,
        colour: str = QUIET,
        bend: float = 0.0,
        dashed: bool = False,
        both: bool = False,
    ) -> None:
        self._axes.add_patch(
            FancyArrowPatch(
                start,
                end,
                arrowstyle="<|-|>" if both else "-|>",
                mutation_scale=9,
                linewidth=1.2,
                color=colour,
                shrinkA=0,
                shrinkB=0,
                connectionstyle=f"arc3,rad={bend}",
                linestyle=(0, (4, 3)) if dashed else "solid",
            )
        )

    def save(self, path: Path) -> None:
        self.figure.savefig(path, metadata={"Software": None})


def tint(colour: str, share: float) -> str:
    """A mix of a colour with white; `share` is the colour's part."""
    channels = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 - share * (255 - channel)):02X}" for channel in channels)
