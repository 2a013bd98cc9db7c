"""Print the parity table of docs/models.md: the largest differences between our models and those of
the transformers library.

Usage: OMP_NUM_THREADS=1 python tools/parity.py

The models are those of tests/model/test_parity.py: small, with the same random weights on both
sides, in fp32 on a CPU.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import transformers
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from scaling.model.export.moves import from_transformers
from tests.model.test_parity import ARRANGEMENTS, batch_of, our_logits, pair, state_of, their_logits


def largest(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()


def differences(name: str) -> tuple[str, float, float, float, float]:
    """The other library's class, its largest logit, and the largest differences of logits, mean
    loss and gradients."""
    ours, theirs, config = pair(name)
    batch = batch_of(name)
    expected, logits = their_logits(theirs, batch), our_logits(ours, batch)
    real = (
        batch.documents_BT == 0
        if batch.documents_BT is not None
        else torch.ones_like(batch.tokens_BT, dtype=torch.bool)
    )
    nats, count, _ = ours.loss(batch)
    loss = nn.functional.cross_entropy(expected.flatten(0, 1), batch.targets_BT.flatten())
    (nats / count).backward()
    loss.backward()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(
                torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            )
    gradients = from_transformers(config, state_of(theirs))
    worst = max(
        largest(gradients[key], torch.zeros_like(p) if p.grad is None else p.grad)
        for key, p in ours.named_parameters()
    )
    return (
        type(theirs).__name__,
        expected[real].abs().max().item(),
        largest(logits[real], expected[real]),
        abs((nats / count - loss).item()),
        worst,
    )


def main() -> None:
    torch.set_num_threads(1)
    print(f"transformers {transformers.__version__}, torch {torch.__version__}\n")
    print("| arrangement | theirs | largest logit | logits | loss | gradients |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in ARRANGEMENTS:
        theirs, size, *found = differences(name)
        print(
            f"| {name} | `{theirs}` | {size:.2f} | "
            + " | ".join(f"{value:.1e}" for value in found)
            + " |"
        )


if __name__ == "__main__":
    main()
