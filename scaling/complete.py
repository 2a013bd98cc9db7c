"""From a prompt to text, whatever the family of the model: what follows, its translation, or what belongs in its gaps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from scaling.config import RunConfig
from scaling.data.tokenizer import Tokenizer
from scaling.model import BERT, GenerativeModel, LanguageModel
from scaling.model.fill import fill

GAP = "<mask>"
"""How a prompt marks what masked_lm and span_corruption are to fill in."""

Generate = Callable[[GenerativeModel, Sequence[int], Sequence[int] | None], list[int]]
"""(model, prompt tokens of the decoder, tokens of the encoder if there is one) -> tokens that follow."""


def complete(config: RunConfig, model: LanguageModel, tokenizer: Tokenizer, prompt: str, generate: Generate) -> str:
    """Causal and prefix LM: what follows the prompt. seq2seq: the target of it. masked_lm and span_corruption: the prompt with
    each gap filled in, a single token or a span; a prompt without one gets one at its end."""
    kind = config.objective.kind
    if isinstance(model, BERT):
        return _fill_tokens(model, tokenizer, prompt)
    assert isinstance(model, GenerativeModel)
    if kind == "span_corruption":
        return _fill_spans(model, tokenizer, prompt, generate)
    ids = tokenizer.encode_batch([prompt])[0].tolist()
    if kind == "causal_lm":
        return tokenizer.decode(generate(model, ids or [tokenizer.eot_id], None))
    source = [*ids, tokenizer.eot_id] if kind == "seq2seq" else ids or [tokenizer.eot_id]
    return tokenizer.decode(generate(model, [tokenizer.special("pad")], source))


def _parts(prompt: str, tokenizer: Tokenizer) -> list[list[int]]:
    """Tokens of the texts between the gaps."""
    texts = prompt.split(GAP)
    return [ids.tolist() for ids in tokenizer.encode_batch(texts if len(texts) > 1 else [prompt, ""])]


def _fill_tokens(model: BERT, tokenizer: Tokenizer, prompt: str) -> str:
    first, *others = _parts(prompt, tokenizer)
    mask = tokenizer.special("mask")
    tokens = [tokenizer.special("cls"), *first]
    for part in others:
        tokens += [mask, *part]
    filled = iter(choices[0][0] for choices in fill(model, [*tokens, tokenizer.special("sep")], mask))
    return tokenizer.decode([next(filled) if token == mask else token for token in tokens])


def _fill_spans(model: GenerativeModel, tokenizer: Tokenizer, prompt: str, generate: Generate) -> str:
    first, *others = _parts(prompt, tokenizer)
    sentinels = tokenizer.sentinel_ids[: len(others)]
    source = list(first)
    for sentinel, part in zip(sentinels, others, strict=False):
        source += [sentinel, *part]
    answer = generate(model, [tokenizer.special("pad")], [*source, tokenizer.eot_id])
    spans: dict[int, list[int]] = {}
    current: list[int] = []
    for token in answer:
        if token in tokenizer.sentinel_ids:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    return tokenizer.decode([part for token in source for part in (spans.get(token, []) if token in sentinels else [token])])
