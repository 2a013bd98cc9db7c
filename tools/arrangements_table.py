"""Print the table of docs/converting.md: every architecture that is read, ours beside theirs.

Usage: OMP_NUM_THREADS=1 python tools/arrangements_table.py

The models are those of tests/model/test_arrangements.py: random small models of the transformers
library, saved, opened as ours. Differences are the largest ones, in fp32 on a CPU.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from scaling.inference.sampling import generate
from scaling.model import GenerativeModel
from tests.model.test_arrangements import (
    CASES,
    Pair,
    assert_comes_back,
    batch_of,
    our_logits,
    their_logits,
)

N_TOKENS = 8
"""Tokens of a greedy continuation."""


def largest(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


def gradients(pair: Pair, ours: Tensor, theirs: Tensor) -> float:
    """The largest difference of a gradient; buffers of theirs have none."""
    ours.backward()
    theirs.backward()
    with torch.no_grad():
        for parameter in pair.theirs.parameters():
            grad = parameter.grad
            parameter.copy_(torch.zeros_like(parameter) if grad is None else grad)
    expected, own = pair.moved(pair.saved()), dict(pair.ours.named_parameters())
    if "final_logits_bias" in pair.state:
        del own["head_bias"]
    return max(
        largest(torch.zeros_like(p) if p.grad is None else p.grad, expected[name])
        for name, p in own.items()
    )


@torch.no_grad()
def greedy(pair: Pair) -> str:
    """Whether our continuation, with caches, is the one of theirs without."""
    if not isinstance(pair.ours, GenerativeModel):
        return ""
    batch = batch_of(pair.config)
    source = None if batch.source_BU is None else batch.source_BU[:1]
    prompt = batch.tokens_BT[:1, :4]
    ours = generate(
        pair.ours,
        prompt[0].tolist(),
        N_TOKENS,
        source_ids=None if source is None else source[0].tolist(),
        temperature=0,
        seed=0,
        context_limit=24,
    )
    tokens = prompt
    for _ in range(N_TOKENS):
        logits = their_logits(pair.theirs, batch._replace(tokens_BT=tokens, source_BU=source))
        tokens = torch.cat((tokens, logits[:, -1].argmax(dim=1, keepdim=True)), dim=1)
    return "equal" if ours == tokens[0, 4:].tolist() else "different"


def row(case: str, folder: Path) -> str:
    pair = Pair(case, folder)
    assert_comes_back(pair)
    batch, text = batch_of(pair.config), greedy(pair)
    expected, logits = their_logits(pair.theirs, batch), our_logits(pair.ours, batch)
    nats, n_targets, _ = pair.ours.loss(batch)
    loss = nn.functional.cross_entropy(expected.flatten(0, 1), batch.targets_BT.flatten())
    n_params = sum(parameter.numel() for parameter in pair.ours.parameters())
    found = (
        expected.abs().max().item(),
        largest(logits, expected),
        abs((nats / n_targets - loss).item()),
        gradients(pair, nats / n_targets, loss),
    )
    numbers = f"{found[0]:.2f} | " + " | ".join(f"{value:.1e}" for value in found[1:])
    return f"| {case} | {n_params / 1e3:.1f} k | {numbers} | equal | {text} |"


def main() -> None:
    torch.set_num_threads(1)
    print(f"transformers {transformers.__version__}, torch {torch.__version__}\n")
    print("| case | parameters | largest logit | logits | loss | gradients | way back | greedy |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            print(row(case, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
