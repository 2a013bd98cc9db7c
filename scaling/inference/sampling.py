"""Text from a model, one token at a time.

Shapes: B = 1 text, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from scaling.model.base import GenerativeModel


def generate(
    model: GenerativeModel,
    prompt_ids: Sequence[int],
    n_tokens: int,
    *,
    source_ids: Sequence[int] | None = None,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    eos_id: int | None = None,
    seed: int,
    context_limit: int,
) -> list[int]:
    """What `stream` yields, whole."""
    return list(
        stream(
            model,
            prompt_ids,
            n_tokens,
            source_ids=source_ids,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            eos_id=eos_id,
            seed=seed,
            context_limit=context_limit,
        )
    )


@torch.no_grad()
def stream(
    model: GenerativeModel,
    prompt_ids: Sequence[int],
    n_tokens: int,
    *,
    source_ids: Sequence[int] | None = None,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    eos_id: int | None = None,
    seed: int,
    context_limit: int,
) -> Iterator[int]:
    """Yield up to `n_tokens` tokens that follow the prompt, each when it is drawn; fewer when
    `eos_id` is, which is not yielded.

    source_ids are what an encoder reads; the prompt of its decoder is the token with which that
    begins. temperature 0 is greedy. top_k keeps the k likeliest tokens, top_p the fewest whose
    probabilities reach p (Holtzman et al. 2020); both may be given. The same seed draws the same
    text on the same device. The model sees at most `context_limit` tokens: when the cache is full,
    the latest half of them is encoded again. Raises ValueError for an empty prompt, and puts the
    model back into the mode it was in at the end.
    """
    if not prompt_ids:
        raise ValueError(
            "generation needs a prompt of at least one token, such as the end-of-text token"
        )
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    tokens, new = list(prompt_ids), list(prompt_ids)[-context_limit:]
    caches, was_training = model.new_caches(context_limit), model.training
    model.eval()
    try:
        source = (
            None
            if source_ids is None
            else model.encode(torch.tensor([list(source_ids)], device=device))
        )
        for _ in range(n_tokens):
            if caches[0].length + len(new) > context_limit:
                caches, new = model.new_caches(context_limit), tokens[-max(1, context_limit // 2) :]
            logits_V = model(torch.tensor([new], device=device), caches, source)[0, -1]
            token = pick(
                logits_V, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator
            )
            if token == eos_id:
                return
            yield token
            tokens.append(token)
            new = [token]
    finally:
        model.train(was_training)


def pick(
    logits_V: Tensor,
    *,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generator: torch.Generator,
) -> int:
    """One token by its logits, drawn on the CPU in fp32."""
    logits_V = logits_V.float().cpu()
    if temperature == 0:
        return int(logits_V.argmax())
    logits_V, token_V = (logits_V / temperature).sort(descending=True, stable=True)
    probability_V = logits_V[:top_k].softmax(dim=-1)
    if top_p is not None:
        before_V = probability_V.cumsum(dim=-1) - probability_V
        probability_V = probability_V.masked_fill(before_V >= top_p, 0.0)
    return int(token_V[torch.multinomial(probability_V, 1, generator=generator)])
