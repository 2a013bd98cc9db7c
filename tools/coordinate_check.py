"""Measure how much a model's outputs change in a few steps, by width and by depth, in each
parametrization: a table and a picture.

    python tools/coordinate_check.py docs/images/coordinate_check.png

The coordinate check of Yang et al. 2022 (arXiv:2203.03466, appendix D.1), on the text of this
package's own sources. Root mean square changes after four steps of AdamW at a rate of 3e-3, of what
the blocks add to the residual stream and of the logits; mean of three seeds. A parametrization in
which rates transfer keeps them level. A minute on one core.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scaling.composition.compose import compose
from scaling.engine.optimizer import build_optimizer, set_rate
from scaling.model import GenerativeModel, build_model, initialise

WIDTHS, DEPTHS = (32, 64, 128, 256, 512), (2, 4, 8, 16, 32)
N_STEPS, LR, SEEDS, BATCH, SEQ_LEN = 4, 3e-3, 3, 4, 64
BASE = (
    "tokenizer=byte",
    f"train.seq_len={SEQ_LEN}",
    "model.d_model=32",
    "model.n_heads=2",
    "model.n_layers=2",
    "model.activation=gelu",
    "optim.weight_decay=0",
)
KINDS = {
    "standard": (),
    "mup": ("model.parametrization=mup", "model.base_width=32"),
    "completep": ("model.parametrization=completep", "model.base_width=32", "model.base_layers=2"),
}


def text() -> Tensor:
    """The package's sources as (BATCH, SEQ_LEN + 1) bytes."""
    source = b"".join(
        path.read_bytes()
        for path in sorted((Path(__file__).parent.parent / "scaling").glob("*.py"))
    )
    rows = np.frombuffer(source, np.uint8)[: BATCH * (SEQ_LEN + 1)].reshape(BATCH, SEQ_LEN + 1)
    return torch.from_numpy(rows.astype(np.int64))


@torch.no_grad()
def outputs(model: GenerativeModel, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The sum that the blocks add to the residual stream, and the logits."""
    embedded = model.embedding(tokens)
    x, _ = model.blocks(embedded, model.position.context(0, embedded, None))
    return x - embedded, model(tokens)


def change(words: Sequence[str], tokens: Tensor, seed: int) -> tuple[float, float]:
    config = compose((*BASE, *words))
    model = build_model(config)
    assert isinstance(model, GenerativeModel)
    initialise(model, seed)
    optimizer, before = build_optimizer(config, model), outputs(model, tokens[:, :-1])
    for _ in range(N_STEPS):
        torch.nn.functional.cross_entropy(
            model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()
        ).backward()
        set_rate(optimizer.param_groups, LR)
        optimizer.step()
        optimizer.zero_grad()
    after = outputs(model, tokens[:, :-1])
    first, second = (
        float((new - old).square().mean().sqrt()) for new, old in zip(after, before, strict=True)
    )
    return first, second


def changes(words: Sequence[str], tokens: Tensor) -> np.ndarray:
    """The changes of the blocks and of the logits, as means over seeds."""
    return np.mean([change(words, tokens, seed) for seed in range(SEEDS)], axis=0)


def main(path: str) -> None:
    torch.set_num_threads(1)
    tokens = text()
    grids = {
        "width": (WIDTHS, lambda value: (f"model.d_model={value}", f"model.n_heads={value // 16}")),
        "depth": (DEPTHS, lambda value: (f"model.n_layers={value}",)),
    }
    found = {}
    for axis, (values, words) in grids.items():
        for kind, parametrization in KINDS.items():
            found[axis, kind] = np.array(
                [changes((*words(value), *parametrization), tokens) for value in values]
            )
            for number, name in enumerate(("blocks", "logits")):
                cells = " | ".join(f"{change:.4f}" for change in found[axis, kind][:, number])
                print(f"| {axis} | {kind} | {name} | {cells} |", flush=True)
    draw(Path(path), {axis: values for axis, (values, _) in grids.items()}, found)


def draw(
    path: Path, values: dict[str, tuple[int, ...]], found: dict[tuple[str, str], np.ndarray]
) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.6), dpi=150, layout="constrained")
    axes = figure.subplots(2, 2, sharex="col", sharey="row")
    colours = {"standard": "#6B7280", "mup": "#0072B2", "completep": "#D55E00"}
    for row, name in enumerate(("blocks", "logits")):
        for column, axis in enumerate(("width", "depth")):
            for kind, colour in colours.items():
                style = {
                    "linestyle": "--" if kind == "completep" else "-",
                    "linewidth": 4 if kind == "standard" else 1.5,
                }
                axes[row, column].plot(
                    values[axis],
                    found[axis, kind][:, row],
                    marker="o",
                    color=colour,
                    label=kind,
                    **style,
                )
            axes[row, column].set(
                xscale="log", yscale="log", ylabel=f"change of the {name}" if column == 0 else ""
            )
            axes[row, column].set_xticks(
                values[axis], [str(value) for value in values[axis]], minor=False
            )
            axes[row, column].minorticks_off()
            axes[row, column].spines[["top", "right"]].set_visible(False)
            axes[row, column].grid(axis="y", color="#E5E7EB")
        axes[1, 0].set_xlabel("d_model, 2 layers")
        axes[1, 1].set_xlabel("n_layers, d_model 32")
    axes[0, 0].legend(frameon=False)
    figure.suptitle(
        "Change after four steps of AdamW", x=0.01, ha="left", fontweight="bold", fontsize=12
    )
    FigureCanvasAgg(figure)
    figure.savefig(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
