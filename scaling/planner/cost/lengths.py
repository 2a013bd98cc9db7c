"""How many tokens of the corpus a sequence takes, and how many positions the model makes of
them."""

from __future__ import annotations

from dataclasses import dataclass

from scaling.config.plugins import added
from scaling.config.run_config import RunConfig
from scaling.errors import ConfigError


@dataclass(frozen=True)
class Lengths:
    """Lengths of one sequence of a run.

    stride   tokens of the corpus from one sequence to the next
    overlap  tokens beyond the stride that it reads as well
    inputs   positions of the only stack, or of the encoder
    targets  positions of the decoder beside an encoder, else 0
    scored   targets that are scored, about; a head may leave the others out
    """

    stride: int
    overlap: int
    inputs: int
    targets: int
    scored: int


PAIR_ROOM = 0.75
"""Positions of encoder and of decoder for each token of a window of text pairs. Each side takes
about half of them; the rest is room for pairs whose sides are not equal, and for the last pair,
which reaches beyond the window. Assumption."""

SHORTEST = 8
"""Least seq_len but for causal LM: special tokens, and on each side of a cut something."""


def lengths(config: RunConfig) -> Lengths:
    """What the objective makes of train.seq_len.

    causal_lm        the targets are the inputs, one token on
    masked_lm        a class token, the text, and a separator after each of its one or two segments
    span_corruption  as much text as leaves seq_len inputs when its spans are hidden (Raffel et al.
                     2020)
    prefix_lm        seq_len tokens cut in two; either part may be the longer, so both sides have
                     room for all
    seq2seq          the pairs that begin in seq_len tokens of source and target

    Raises ConfigError when seq_len is too short, or has more hidden spans than the tokenizer has
    sentinels.
    """
    objective, seq_len = config.objective, config.train.seq_len
    if plugin := added("objectives").get(objective.kind):
        own: Lengths = plugin.lengths(config)
        return own
    if objective.kind != "causal_lm" and seq_len < SHORTEST:
        raise ConfigError(
            f"train.seq_len={seq_len} is too short for objective={objective.kind}",
            fix=f"Use {SHORTEST} or more.",
        )
    if objective.kind == "causal_lm":
        return Lengths(seq_len, 1, seq_len, 0, seq_len)
    if objective.kind == "masked_lm":
        text = seq_len - (3 if objective.sentence_order else 2)
        return Lengths(text, 0, seq_len, 0, masked_tokens(text, objective.mask_fraction))
    if objective.kind == "span_corruption":
        text = corrupted_text(seq_len, objective.mask_fraction, objective.mean_span)
        hidden, spans = hidden_spans(text, objective.mask_fraction, objective.mean_span)
        n_sentinels = config.tokenizer.n_sentinels
        if spans > n_sentinels:
            raise ConfigError(
                f"objective=span_corruption hides {spans} spans a sequence, and "
                f"tokenizer.n_sentinels={n_sentinels}",
                where=f"train.seq_len={seq_len}, objective.mask_fraction={objective.mask_fraction}",
                fix=f"Use tokenizer.n_sentinels={spans} or more, or a shorter train.seq_len.",
            )
        return Lengths(text, 0, text - hidden + spans + 1, hidden + spans + 1, hidden + spans + 1)
    if objective.kind == "prefix_lm":
        return Lengths(seq_len, 0, seq_len, seq_len, seq_len // 2)
    room = int(PAIR_ROOM * seq_len)
    return Lengths(seq_len, 2 * room + 1, room, room, seq_len // 2)


def masked_tokens(n_tokens: int, fraction: float) -> int:
    """Tokens that are predicted of so many: the fraction, rounded, at least one."""
    return max(1, round(fraction * n_tokens))


def hidden_spans(n_tokens: int, fraction: float, mean_span: float) -> tuple[int, int]:
    """Tokens that are hidden of so many, and in how many spans: at least one of each, and one left
    between any two."""
    hidden = min(max(round(n_tokens * fraction), 1), n_tokens - 1)
    spans = max(1, round(hidden / mean_span))
    return hidden, min(spans, hidden, n_tokens - hidden)


def corrupted_text(seq_len: int, fraction: float, mean_span: float) -> int:
    """The longest text whose inputs, with a sentinel for each hidden span and an end token, have at
    most seq_len tokens.

    With 512, 0.15 and 3.0 it is 568, and its targets have 114 tokens, as in the code of Raffel et
    al. 2020 (T5).
    """
    n_tokens = 2
    while _corrupted(n_tokens + 1, fraction, mean_span) <= seq_len:
        n_tokens += 1
    return n_tokens


def _corrupted(n_tokens: int, fraction: float, mean_span: float) -> int:
    hidden, spans = hidden_spans(n_tokens, fraction, mean_span)
    return n_tokens - hidden + spans + 1
