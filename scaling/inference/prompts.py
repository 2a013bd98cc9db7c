"""Text that a model of any family makes of a prompt: its continuation, its translation, or the text
of its gaps."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from scaling.config.run_config import RunConfig
from scaling.data.tokenizer.byte_level import Tokenizer
from scaling.inference.gaps import fill
from scaling.model import GenerativeModel, LanguageModel, MaskedModel

GAP = "<mask>"
"""How a prompt marks what masked_lm and span_corruption are to fill in."""

Generate = Callable[[GenerativeModel, Sequence[int], Sequence[int] | None], list[int]]
"""(model, prompt tokens of the decoder, tokens of the encoder if there is one) -> tokens that
follow."""


@dataclass(frozen=True)
class Question:
    """A prompt in tokens: those with which the decoder begins, and what the encoder reads, if there
    is one."""

    prompt_ids: list[int]
    source_ids: list[int] | None = None


def complete(
    config: RunConfig, model: LanguageModel, tokenizer: Tokenizer, prompt: str, generate: Generate
) -> str:
    """Causal and prefix LM: what follows the prompt. seq2seq: the target of it. masked_lm and
    span_corruption: the prompt with each gap filled in, a single token or a span; a prompt without
    one gets one at its end."""
    if isinstance(model, MaskedModel):
        return _fill_tokens(config, model, tokenizer, prompt)
    assert isinstance(model, GenerativeModel)
    asked = question(config, tokenizer, prompt)
    answer = generate(model, asked.prompt_ids, asked.source_ids)
    return tokenizer.decode(list(text_tokens(config, tokenizer, asked, answer)))


def question(config: RunConfig, tokenizer: Tokenizer, prompt: str) -> Question:
    """What a generative model of this objective is given to read for a prompt. An objective of a
    plugin asks as the other ones of its model's family do: the text, or its source."""
    kind = config.objective.kind
    if kind == "span_corruption":
        return Question([tokenizer.special("pad")], _with_sentinels(config, tokenizer, prompt))
    ids = tokenizer.encode_batch([prompt])[0].tolist()
    if not config.model.traits.encoder_and_decoder:
        return Question(ids or [tokenizer.eot_id])
    source = [*ids, tokenizer.eot_id] if kind == "seq2seq" else ids or [tokenizer.eot_id]
    return Question([tokenizer.special("pad")], source)


def text_tokens(
    config: RunConfig, tokenizer: Tokenizer, asked: Question, answer: Iterable[int]
) -> Iterator[int]:
    """Tokens of the text that an answer makes, each as soon as it is certain: for span_corruption
    the prompt with its gaps filled in, otherwise the answer itself."""
    if config.objective.kind == "span_corruption":
        assert asked.source_ids is not None
        return _into_gaps(asked.source_ids, set(tokenizer.sentinel_ids), answer)
    return iter(answer)


def masked(config: RunConfig, tokenizer: Tokenizer, prompt: str) -> list[int]:
    """What a masked language model reads: class token, the prompt with a mask in each gap,
    separator."""
    first, *others = _parts(config, tokenizer, prompt)
    tokens = [tokenizer.special("cls"), *first]
    for part in others:
        tokens += [tokenizer.special("mask"), *part]
    return [*tokens, tokenizer.special("sep")]


def _parts(config: RunConfig, tokenizer: Tokenizer, prompt: str) -> list[list[int]]:
    """Tokens of the texts between the gaps. A space before a gap belongs into it where words carry
    the space before them."""
    *before, last = prompt.split(GAP) if GAP in prompt else [prompt, ""]
    if config.tokenizer.kind != "byte":
        before = [text.removesuffix(" ") for text in before]
    return [ids.tolist() for ids in tokenizer.encode_batch([*before, last])]


def _fill_tokens(config: RunConfig, model: MaskedModel, tokenizer: Tokenizer, prompt: str) -> str:
    tokens, mask = masked(config, tokenizer, prompt), tokenizer.special("mask")
    filled = iter(choices[0][0] for choices in fill(model, tokens, mask))
    return tokenizer.decode([next(filled) if token == mask else token for token in tokens])


def _with_sentinels(config: RunConfig, tokenizer: Tokenizer, prompt: str) -> list[int]:
    first, *others = _parts(config, tokenizer, prompt)
    source = list(first)
    for sentinel, part in zip(tokenizer.sentinel_ids, others, strict=False):
        source += [sentinel, *part]
    return [*source, tokenizer.eot_id]


def _into_gaps(
    source: Sequence[int], sentinels: Container[int], answer: Iterable[int]
) -> Iterator[int]:
    """`source` with the answer's spans in place of their sentinels. The first span of a gap counts,
    and what the answer says before its first sentinel belongs nowhere."""
    spans: dict[int, list[int]] = {}
    growing, span, n_given = None, list[int](), 0
    for token in answer:
        if token in sentinels:
            span = []
            growing = None if token in spans else token
            spans.setdefault(token, span)
        else:
            span.append(token)
        certain = list(_certain(source, sentinels, spans, growing))
        yield from certain[n_given:]
        n_given = len(certain)
    known = {token: spans.get(token, []) for token in source if token in sentinels}
    yield from list(_certain(source, sentinels, known, None))[n_given:]


def _certain(
    source: Sequence[int],
    sentinels: Container[int],
    spans: Mapping[int, Sequence[int]],
    growing: int | None,
) -> Iterator[int]:
    """The filled source up to the end of the first gap that may still get more."""
    for token in source:
        if token not in sentinels:
            yield token
        elif token in spans:
            yield from spans[token]
        if token in sentinels and (token == growing or token not in spans):
            return
