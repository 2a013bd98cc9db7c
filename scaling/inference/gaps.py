"""What a masked language model puts in place of a mask.

Shapes: T positions, M masks, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from scaling.model.base import MaskedModel


@torch.no_grad()
def fill(
    model: MaskedModel, tokens_T: Sequence[int], mask_id: int, *, top_k: int = 1
) -> list[list[tuple[int, float]]]:
    """Find for each mask, in order, its `top_k` likeliest tokens with their probabilities.

    Each is predicted by itself, with the other masks hidden. Tokens include the class and separator
    tokens.
    """
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    try:
        tokens = torch.tensor([list(tokens_T)], device=device)
        probability_MV = model(tokens)[0, tokens[0] == mask_id].float().softmax(dim=-1)
    finally:
        model.train(was_training)
    best = probability_MV.topk(top_k)
    return [
        list(zip(ids, values, strict=True))
        for ids, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
