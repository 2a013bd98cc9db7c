"""Draw the pictures of docs/parallelism.md.

Usage: python tools/pictures/parallelism.py [DIRECTORY]     default: docs/images
"""

from __future__ import annotations

import sys
from pathlib import Path

from canvas import BLUE, FAINT, GREEN, INK, LINE, QUIET, RANKS, SKY, VERMILION, Canvas, tint
from schedule import bubble, followed

from scaling.config.cluster import PipelineSchedule

N = 4  # ranks or stages of each picture; tensor parallelism has two


def data_parallel() -> Canvas:
    """Draw the memory of each rank under ddp and ZeRO 1 to 3, and the traffic of a step."""
    canvas = Canvas(
        49,
        "Data parallel: the ranks read different sequences; ZeRO divides the state of training",
    )
    kinds = (("weights", BLUE), ("gradients", GREEN), ("optimiser states", VERMILION))
    for (name, colour), x in zip(kinds, (13, 25, 38), strict=True):
        canvas.box(x, 5.4, 1.6, 1.6, fill=colour, edge=colour)
        canvas.text(x + 2.4, 6.2, name, align="left", size=10)
    canvas.text(
        62, 6.2, "sent by a rank in a step, P parameters", align="left", size=10, colour=QUIET
    )
    for rank in range(N):
        canvas.text(18.5 + 12 * rank, 9.4, f"rank {rank}", size=10, colour=QUIET)
    rows: list[tuple[str, int, list[tuple[str, float, str]], str]] = [
        ("ddp", 0, [("all-reduce", 2, GREEN)], "2 P"),
        ("zero1", 1, [("reduce-\nscatter", 1, GREEN), ("all-\ngather", 1, BLUE)], "2 P"),
        ("zero2", 2, [("reduce-\nscatter", 1, GREEN), ("all-\ngather", 1, BLUE)], "2 P"),
        (
            "zero3",
            3,
            [("all-\ngather", 1, BLUE), ("all-\ngather", 1, BLUE), ("reduce-\nscatter", 1, GREEN)],
            "3 P",
        ),
    ]
    notes = (
        "before the update",
        "before and after the update",
        "as each is made; after the update",
        "for forward, for backward; as each is made",
    )
    for number, ((name, stage, sent, volume), note) in enumerate(zip(rows, notes, strict=True)):
        y = 11.5 + 9.4 * number
        canvas.text(2, y + 3, name, align="left", weight="bold", size=11)
        for rank in range(N):
            for line, (_, colour) in enumerate(kinds):
                _quarters(
                    canvas,
                    13 + 12 * rank,
                    y + 2.2 * line,
                    colour,
                    own=rank if stage >= 3 - line else None,
                )
        x = 62.0
        for text, size, colour in sent:
            canvas.box(
                x, y, 9.6 * size - 0.4, 4.2, text, fill=tint(colour, 0.25), edge=colour, size=9.5
            )
            x += 9.6 * size
        canvas.text(x + 1, y + 2.1, volume, align="left", weight="bold", size=11)
        canvas.text(62, y + 5.7, note, align="left", size=9, colour=QUIET)
    return canvas


def _quarters(canvas: Canvas, x: float, y: float, colour: str, own: int | None) -> None:
    """A whole object, or the quarter of it that a rank owns."""
    width = 11 / N
    for part in range(N):
        held = own is None or own == part
        canvas.box(
            x + width * part,
            y,
            width,
            1.7,
            fill=colour if held else FAINT,
            edge="white" if held else "#E5E7EB",
        )


def tensor_parallel() -> Canvas:
    """Draw a block without and with a split residual stream, the embedding and the loss."""
    canvas = Canvas(
        84, "Tensor parallel, tp=2: each rank holds some heads, columns, rows and vocabulary"
    )
    _block(
        canvas,
        6,
        "A block: all-reduces, forward at the two grey bars, backward at the two white ones",
        sequence=False,
    )
    _block(
        canvas,
        33,
        "With sequence_parallel the residual stream is cut by position; backward swaps the bars",
        sequence=True,
    )
    _ends(canvas, 60)
    return canvas


def _lanes(canvas: Canvas, y: float) -> None:
    for rank in range(2):
        canvas.box(
            8, y + 10 * rank, 91, 9.4, fill=tint(RANKS[rank], 0.07), edge=tint(RANKS[rank], 0.07)
        )
        canvas.text(1.5, y + 10 * rank + 4.7, f"rank {rank}", align="left", size=10, colour=QUIET)


def _matrix(canvas: Canvas, x: float, y: float, rank: int, text: str, *, columns: bool) -> None:
    """A matrix of which a rank holds half: output columns (with all inputs), or rows (with partial
    sums as outputs)."""
    side, half = 4.4, 2.2
    canvas.box(x, y + 1.2, side, side, fill="white")
    canvas.box(
        x + half * rank * columns,
        y + 1.2 + half * rank * (not columns),
        half if columns else side,
        side if columns else half,
        fill=RANKS[rank],
        edge=RANKS[rank],
    )
    canvas.text(x + side / 2, y + 7.4, text, size=10)


def _bar(canvas: Canvas, x: float, y: float, text: str, *, sends: bool) -> None:
    canvas.box(
        x,
        y - 0.4,
        2.8,
        20.2,
        text,
        fill="#D1D5DB" if sends else "white",
        edge=QUIET,
        size=9.5,
        turned=True,
    )


def _block(canvas: Canvas, y: float, caption: str, *, sequence: bool) -> None:
    canvas.text(2, y, caption, align="left", size=10.5)
    y += 2.2
    _lanes(canvas, y)
    enter, leave = (
        ("all-gather", "reduce-scatter")
        if sequence
        else ("copy; backward all-reduce", "all-reduce")
    )
    for rank in range(2):
        top = y + 10 * rank
        for x in (9, 49.4, 92):
            _stream(canvas, x, top, rank, sequence=sequence)
        for x in (14.6, 55.2):
            canvas.box(x, top + 2, 6, 3.2, "norm", size=10)
        _matrix(canvas, 25.8, top, rank, "q k v", columns=True)
        canvas.box(31.4, top + 1, 7.2, 5, "its own\nheads", size=9.5)
        _matrix(canvas, 39.8, top, rank, "o", columns=False)
        _matrix(canvas, 67.4, top, rank, "gate up", columns=True)
        canvas.box(73.6, top + 2, 5.4, 3.2, "f · g", size=10)
        _matrix(canvas, 80.4, top, rank, "down", columns=False)
    for x, text, sends in (
        (21.8, enter, sequence),
        (45.4, leave, True),
        (62.4, enter, sequence),
        (87, leave, True),
    ):
        _bar(canvas, x, y, text, sends=sends)


def _stream(canvas: Canvas, x: float, y: float, rank: int, *, sequence: bool) -> None:
    """Draw the residual stream. x: all positions, or the rank's half of them."""
    canvas.box(x, y + 1, 4.4, 5, fill="white", dashed=sequence)
    if sequence:
        canvas.box(x, y + 1 + 2.5 * rank, 4.4, 2.5, "x", fill=tint(RANKS[rank], 0.45), edge=LINE)
    else:
        canvas.box(x, y + 1, 4.4, 5, "x", fill=tint(SKY, 0.3), edge=LINE)


def _ends(canvas: Canvas, y: float) -> None:
    canvas.text(
        2,
        y,
        "Embedding, head and loss: no rank holds the logits of all entries",
        align="left",
        size=10.5,
    )
    y += 2.2
    _lanes(canvas, y)
    for rank in range(2):
        top = y + 10 * rank
        canvas.box(9, top + 2, 7, 3.2, "tokens", size=10)
        _matrix(canvas, 18.4, top, rank, "embedding", columns=False)
        _stream(canvas, 30, top, rank, sequence=False)
        canvas.box(36, top + 2, 8, 3.2, "blocks", size=10)
        canvas.box(46, top + 2, 6, 3.2, "norm", size=10)
        _matrix(canvas, 58.6, top, rank, "head", columns=True)
        canvas.box(65.4, top + 1, 10, 5, "its logits,\nV / 2 each", size=9.5)
        canvas.box(90, top + 2, 6, 3.2, "loss", size=10)
    _bar(canvas, 25.8, y, "all-reduce", sends=True)
    _bar(canvas, 53.6, y, "copy; backward all-reduce", sends=False)
    text = (
        "all-reduce of\na token's\nlargest logit\nand sum of\nexponentials,\n"
        "and of the\nsum of losses"
    )
    canvas.box(77.2, y - 0.4, 11, 20.2, text, fill="#D1D5DB", edge=QUIET, size=9.5)


def pipeline_parallel() -> Canvas:
    """Draw the content of each stage, and the schedule."""
    canvas = Canvas(
        99, "Pipeline parallel, pp=4: each rank has some blocks; micro-batches follow one another"
    )
    canvas.text(2, 6.4, "gpt, bert", align="left", weight="bold")
    _stages(
        canvas,
        8.4,
        [
            ["embedding", "blocks 0-2"],
            ["blocks 3-5"],
            ["blocks 6-8"],
            ["blocks 9-11", "norm, head"],
        ],
        ["x"] * 3,
    )
    canvas.text(2, 20.8, "t5, transformer", align="left", weight="bold")
    _stages(
        canvas,
        22.8,
        [
            ["embedding", "encoder 0-5"],
            ["encoder 6-11"],
            ["norm, embedding", "decoder 0-5"],
            ["decoder 6-11", "norm, head"],
        ],
        ["x", "x", "x, source"],
    )
    canvas.text(
        2,
        35.4,
        "A tied embedding is on every stage that uses it; its gradients are summed over those.",
        align="left",
        size=10,
    )
    _schedule(
        canvas,
        42.6,
        "1f1b",
        f"1F1B of {2 * N} micro-batches",
        "(p - 1) / (m + p - 1) of p={p} ranks and m={m} micro-batches.",
    )
    canvas.text(
        2,
        62.4,
        "DualPipeV: two stages a rank, the second (darker) on the way back",
        align="left",
        weight="bold",
    )
    back = [
        [f"stages {rank} and {2 * N - 1 - rank}", f"block {rank}", f"block {2 * N - 1 - rank}"]
        for rank in range(N)
    ]
    for rank, (x, (_, there, again)) in enumerate(zip((2, 27.5, 53, 78.5), back, strict=True)):
        canvas.box(x, 64.4, 18, 9, fill=tint(RANKS[rank], 0.12), edge=RANKS[rank])
        canvas.text(x + 9, 66, back[rank][0], size=9.5, colour=QUIET)
        canvas.box(x + 1.5, 67.3, 15, 2.7, ("embedding, " if rank == 0 else "") + there, size=9.5)
        canvas.box(x + 1.5, 70.3, 15, 2.7, again + (", norm, head" if rank == 0 else ""), size=9.5)
        if rank:
            canvas.arrow((x - 7, 68.6), (x - 0.5, 68.6))
            canvas.arrow((x - 0.5, 71.6), (x - 7, 71.6))
    canvas.arrow((97.2, 68.6), (97.2, 71.6), bend=-0.9)
    _schedule(
        canvas,
        80,
        "dualpipev",
        f"DualPipeV of {2 * N} micro-batches",
        "against {of_1f1b:.1f} % of 1F1B.",
    )
    return canvas


def _schedule(canvas: Canvas, top: float, kind: PipelineSchedule, title: str, note: str) -> None:
    """One row per rank with its passes over time."""
    p, m = N, 2 * N
    work = followed(kind, p, m)
    unit = 88 / max(piece.end for piece in work)
    for rank in range(p):
        canvas.text(2, top + 3.6 * rank + 1.5, f"rank {rank}", align="left", size=10, colour=QUIET)
        canvas.box(10, top + 3.6 * rank, 88, 3, fill=FAINT, edge=FAINT)
    for piece in work:
        again = piece.stage >= p
        colour = (
            tint(BLUE, 0.6 if again else 0.35)
            if piece.kind == "forward"
            else tint(VERMILION, 0.65 if again else 0.4)
        )
        canvas.box(
            10 + unit * piece.start,
            top + 3.6 * piece.rank,
            unit * (piece.end - piece.start),
            3,
            str(piece.micro_batch),
            fill=colour,
            edge="white",
            size=9.5 if kind == "1f1b" else 8,
        )
    canvas.text(2, top - 2, title, align="left", weight="bold")
    for x, text, colour in (
        (42, "forward", tint(BLUE, 0.35)),
        (56, "backward", tint(VERMILION, 0.4)),
        (71, "bubble", FAINT),
    ):
        canvas.box(x, top - 2.8, 1.6, 1.6, fill=colour, edge=LINE)
        canvas.text(x + 2.4, top - 2, text, align="left", size=10)
    note = note.format(p=p, m=m, of_1f1b=100 * bubble(followed("1f1b", p, m)))
    canvas.text(
        2,
        top + 16,
        f"Bubble: {100 * bubble(work):.1f} % of the time, {note}",
        align="left",
        size=10,
    )


def _stages(canvas: Canvas, y: float, stages: list[list[str]], passed: list[str]) -> None:
    for number, (parts, x) in enumerate(zip(stages, (2, 27.5, 53, 78.5), strict=True)):
        canvas.box(x, y, 18, 9, fill=tint(RANKS[number], 0.12), edge=RANKS[number])
        canvas.text(x + 9, y + 1.6, f"stage {number}", size=9.5, colour=QUIET)
        height = 2.7
        for line, part in enumerate(parts):
            canvas.box(x + 1.5, y + 2.9 + (height + 0.3) * line, 15, height, part, size=9.5)
        if number:
            canvas.arrow((x - 7, y + 4), (x - 0.5, y + 4))
            canvas.arrow((x - 0.5, y + 6.4), (x - 7, y + 6.4), colour=VERMILION)
            canvas.text(x - 3.75, y + 2.5, passed[number - 1], size=9.5)
            canvas.text(x - 3.75, y + 7.9, "gradient", size=9, colour=VERMILION)


def context_parallel() -> Canvas:
    """Draw the exchange from positions of all heads to heads of all positions, and back."""
    canvas = Canvas(
        79, "Context parallel, cp=4. Ulysses: positions are swapped for heads around attention"
    )
    y, side = 11.0, 20.0
    for rank in range(N):
        canvas.box(14 + 18 * rank, 5.6, 1.6, 1.6, fill=RANKS[rank], edge=RANKS[rank])
        canvas.text(14 + 18 * rank + 2.4, 6.4, f"on rank {rank}", align="left", size=10)
    for x, heads in ((7, False), (40, True), (73, False)):
        for row in range(N):
            for column in range(N):
                colour = RANKS[column if heads else row]
                canvas.box(x + 5 * column, y + 5 * row, 5, 5, fill=tint(colour, 0.75), edge="white")
        for n in range(N):
            canvas.text(x + 5 * n + 2.5, y + side + 1.6, f"h{n}", size=10, colour=QUIET)
            canvas.text(x - 1.8, y + 5 * n + 2.5, f"t{n}", size=10, colour=QUIET)
    canvas.text(
        17, 38, "every layer but attention:\na quarter of the positions,\nall heads", size=10
    )
    canvas.text(50, 38, "attention:\nall positions,\na quarter of the heads", size=10)
    canvas.text(83, 38, "and back:\na quarter of the positions,\nall heads", size=10)
    for x, what in ((28, "q, k, v"), (61, "output")):
        canvas.arrow((x, y + 11), (x + 9, y + 11), colour=INK)
        canvas.text(x + 4.5, y + 8.8, "all-to-all", size=10)
        canvas.text(x + 4.5, y + 13, what, size=10)
    text = (
        "A rank keeps 1/4 of its tensor and sends 1/4 to each of the others: "
        "four times a block forward, four backward."
    )
    canvas.text(2, 44.4, text, align="left", size=10)
    _ring(canvas, 49)
    return canvas


def _ring(canvas: Canvas, y: float) -> None:
    """Draw whose keys a rank meets at each turn of the ring."""
    canvas.text(
        2,
        y,
        "Ring: queries stay, keys and values go round; for any number of heads",
        align="left",
        weight="bold",
    )
    for turn in range(N):
        x = 16 + 21 * turn
        canvas.text(x + 8, y + 4.4, f"turn {turn + 1}", size=10, colour=QUIET)
        for rank in range(N):
            row, owner = y + 6.4 + 4.6 * rank, (rank - turn) % N
            canvas.box(
                x,
                row,
                7.4,
                3.8,
                f"q of t{rank}",
                fill=tint(RANKS[rank], 0.45),
                edge=RANKS[rank],
                size=9.5,
            )
            ahead = owner > rank
            canvas.box(
                x + 8,
                row,
                7.4,
                3.8,
                f"k, v of t{owner}",
                fill="white" if ahead else tint(RANKS[owner], 0.45),
                edge=RANKS[owner],
                size=9.5,
                colour=QUIET if ahead else INK,
                dashed=ahead,
            )
            if turn < N - 1 and rank < N - 1:
                canvas.arrow((x + 16, row + 1.9), (x + 20, row + 6.5))
    for rank in range(N):
        canvas.text(
            2, y + 6.4 + 4.6 * rank + 1.9, f"rank {rank}", align="left", size=10, colour=QUIET
        )
    text = (
        "Keys of later positions (dashed boxes) pass unused where attention is causal. "
        "The last rank's go to the first."
    )
    canvas.text(2, y + 26.6, text, align="left", size=10)


PICTURES = {
    "data_parallel": data_parallel,
    "tensor_parallel": tensor_parallel,
    "pipeline_parallel": pipeline_parallel,
    "context_parallel": context_parallel,
}


def main() -> None:
    directory = (
        Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2] / "docs" / "images"
    )
    for name, draw in PICTURES.items():
        path = directory / f"{name}.png"
        draw().save(path)
        print(path)


if __name__ == "__main__":
    main()
