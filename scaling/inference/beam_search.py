"""Beam search: the likeliest continuation, as far as a few alive hypotheses can tell.

Shapes: B alive hypotheses, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from scaling.model.base import GenerativeModel


class Hypothesis(NamedTuple):
    """Tokens that follow the prompt, without the end token, and their log-probability over the
    length penalty."""

    score: float
    tokens: list[int]


@torch.no_grad()
def beam_search(
    model: GenerativeModel,
    prompt_ids: Sequence[int],
    max_tokens: int,
    *,
    eos_id: int,
    n_beams: int = 4,
    length_penalty: float = 0.6,
    source_ids: Sequence[int] | None = None,
) -> list[Hypothesis]:
    """Find up to `n_beams` hypotheses, best first: ended by `eos_id`, or `max_tokens` long.

    The score is log p / ((5 + n) / 6)^length_penalty for n tokens, the end token included (Wu et
    al. 2016, arXiv:1609.08144, eq. 14; beams 4 and penalty 0.6 as in Vaswani et al. 2017, section
    6.1). A hypothesis ends where the end token is among the `n_beams` likeliest steps of all: any
    end counted, the likeliest text would often be none at all (Stahlberg and Byrne 2019,
    arXiv:1908.10090), and one beam without penalty is greedy. It stops when no alive hypothesis can
    become better than the worst of `n_beams` finished ones. Raises ValueError for an empty prompt.
    """
    if not prompt_ids:
        raise ValueError(
            "beam search needs a prompt of at least one token, with which the decoder begins"
        )
    was_training = model.training
    model.eval()
    try:
        return _search(
            model, list(prompt_ids), max_tokens, eos_id, n_beams, length_penalty, source_ids
        )
    finally:
        model.train(was_training)


def _search(
    model: GenerativeModel,
    prompt: list[int],
    max_tokens: int,
    eos_id: int,
    n_beams: int,
    alpha: float,
    source_ids: Sequence[int] | None,
) -> list[Hypothesis]:
    device = next(model.parameters()).device
    source = (
        None
        if source_ids is None
        else model.encode(torch.tensor([list(source_ids)], device=device))
    )
    caches = model.new_caches(len(prompt) + max_tokens)
    alive, log_p_B = [list[int]()], torch.zeros(1, device=device)
    new_BT = torch.tensor([prompt], device=device)
    finished: list[Hypothesis] = []
    for length in range(1, max_tokens + 1):
        logits_BV = model(new_BT, caches, source)[:, -1].float()
        log_p_BV = log_p_B[:, None] + logits_BV.log_softmax(dim=-1)
        least = float(_best(log_p_BV, n_beams)[0][-1])
        ended = zip(log_p_BV[:, eos_id].tolist(), alive, strict=True)
        finished += [
            Hypothesis(log_p / _penalty(length, alpha), tokens)
            for log_p, tokens in ended
            if log_p >= least
        ]
        finished = sorted(finished, reverse=True)[:n_beams]
        log_p_BV[:, eos_id] = float("-inf")
        log_p_B, beam_B, token_B = _best(log_p_BV, n_beams)
        alive = [
            [*alive[beam], token]
            for beam, token in zip(beam_B.tolist(), token_B.tolist(), strict=True)
        ]
        if (
            len(finished) == n_beams
            and float(log_p_B[0]) / _penalty(max_tokens, alpha) <= finished[-1].score
        ):
            return finished
        for cache in caches:
            cache.select(beam_B)
        if source is not None:
            source = source._replace(x_BSD=source.x_BSD[beam_B])
        new_BT = token_B[:, None]
    cut = [
        Hypothesis(log_p / _penalty(max_tokens, alpha), tokens)
        for log_p, tokens in zip(log_p_B.tolist(), alive, strict=True)
    ]
    return sorted(finished + cut, reverse=True)[:n_beams]


def _best(log_p_BV: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """The n likeliest that are possible, best first: log-probability, hypothesis and token of
    each."""
    flat = log_p_BV.flatten()
    values_B, index_B = flat.topk(min(n, int(torch.isfinite(flat).sum())))
    vocab_size = log_p_BV.shape[1]
    return values_B, index_B // vocab_size, index_B % vocab_size


def _penalty(length: int, alpha: float) -> float:
    return ((5 + length) / 6) ** alpha
