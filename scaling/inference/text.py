"""Texts of a trained run, piece by piece: what may be asked of it, and how its tokens are
chosen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

from scaling.config.run_config import RunConfig
from scaling.data.tokenizer.byte_level import Tokenizer
from scaling.errors import ConfigError
from scaling.inference.beam_search import beam_search
from scaling.inference.gaps import fill
from scaling.inference.options import N_TOKENS, FillOptions, GenerateOptions, PromptOptions
from scaling.inference.prompts import GAP, Question, masked, question, text_tokens
from scaling.inference.sampling import stream
from scaling.inference.trained import Trained
from scaling.model import GenerativeModel, MaskedModel
from scaling.planner.cost.lengths import lengths


def texts(run: Trained, options: GenerateOptions) -> Iterator[Iterator[str]]:
    """Each text, in pieces as they are made (of beam search all at once). Raises ConfigError,
    before the first is asked for."""
    config, tokenizer = run.config, run.tokenizer
    if not isinstance(run.model, GenerativeModel):
        raise ConfigError(
            f"{run.path.name} is a model of family {config.model.family}, which fills gaps and "
            "continues nothing",
            f"from={options.source}",
            f'Use python -m scaling.fill from={options.source} prompt="... {GAP} ...".',
        )
    _check_prompt(config, tokenizer, options)
    asked = question(config, tokenizer, options.prompt)
    n_tokens = _n_tokens(config, asked, options)
    answers = (_beams if options.method_for(config) == "beam" else _draws)(
        run, run.model, asked, options, n_tokens
    )
    show = _spans if options.show == "spans" else _text
    return (show(run, asked, answer) for answer in answers)


def choices(run: Trained, options: FillOptions) -> list[list[tuple[str, float]]]:
    """Find for each gap its likeliest tokens and their probabilities. Raises
    ConfigError."""
    config, tokenizer = run.config, run.tokenizer
    if not isinstance(run.model, MaskedModel):
        raise ConfigError(
            f"{run.path.name} is a model of family {config.model.family}, "
            "which does not fill single gaps",
            f"from={options.source}",
            f'Use python -m scaling.generate from={options.source} prompt="...".',
        )
    if GAP not in options.prompt:
        raise ConfigError(
            f"prompt has no gap {GAP}",
            f"prompt={options.prompt!r}",
            f'Write one, as prompt="import {GAP}".',
        )
    if options.top_k > config.vocab_size:
        what = f"top_k={options.top_k}, and the vocabulary has {config.vocab_size} entries"
        raise ConfigError(what, "from the command line", f"Use top_k={config.vocab_size} or less.")
    tokens = masked(config, tokenizer, options.prompt)
    _check_length(config, len(tokens), options)
    found = fill(run.model, tokens, tokenizer.special("mask"), top_k=options.top_k)
    return [
        [(_name(tokenizer, token), probability) for token, probability in best] for best in found
    ]


def _name(tokenizer: Tokenizer, token: int) -> str:
    """A token in quotes; bytes that are no whole character as \\xNN, a special token by its id."""
    piece = tokenizer.bytes_of(token)
    return repr(piece.decode("utf-8", "backslashreplace")) if piece else f"token {token}, special"


def _check_prompt(config: RunConfig, tokenizer: Tokenizer, options: GenerateOptions) -> None:
    """Raise ConfigError for a prompt that this objective can make nothing of."""
    kind, prompt = config.objective.kind, options.prompt
    if kind == "seq2seq" and not prompt.strip():
        raise ConfigError(
            "prompt is empty, and there is nothing to translate",
            f"objective={kind}",
            "Give a sentence.",
        )
    if kind != "span_corruption":
        if options.show == "spans":
            raise ConfigError(
                "show=spans, but only objective=span_corruption has gaps",
                f"objective={kind}",
                "Leave show out.",
            )
        return
    if not prompt:
        fix = f'Write {GAP} where something is missing, as prompt="def {GAP}(self):".'
        raise ConfigError("prompt is empty, and there is no gap to fill", f"objective={kind}", fix)
    n_gaps, n_sentinels = prompt.count(GAP), len(tokenizer.sentinel_ids)
    if n_gaps > n_sentinels:
        where = f"tokenizer.n_sentinels={n_sentinels} of the run"
        raise ConfigError(
            f"prompt has {n_gaps} gaps, and the tokenizer tells {n_sentinels} apart",
            where,
            "Use fewer gaps.",
        )


def _n_tokens(config: RunConfig, asked: Question, options: GenerateOptions) -> int:
    """Most tokens of a text. Raises ConfigError when the prompt is too long, or when more are asked
    for than there is room.

    Only a decoder alone that looks at one text has no end: it continues with the latest part of it.
    """
    read = asked.prompt_ids if asked.source_ids is None else asked.source_ids
    _check_length(config, len(read), options)
    wanted, shape = options.max_new_tokens, lengths(config)
    if asked.source_ids is not None:
        room, who, fix = shape.targets, f"the decoder of objective={config.objective.kind}", ""
    elif options.method_for(config) == "beam":
        room, who, fix = (
            shape.inputs - len(read) + 1,
            "beam search from this prompt",
            " method=sample and greedy continue for ever.",
        )
    else:
        return wanted or N_TOKENS
    if wanted is not None and wanted > room:
        where = f"train.seq_len={config.train.seq_len} of the run"
        raise ConfigError(
            f"max_new_tokens={wanted}, and {who} has room for {room}",
            where,
            f"Use {room} or less.{fix}",
        )
    return wanted or (room if asked.source_ids is not None else min(N_TOKENS, room))


def _check_length(config: RunConfig, n_tokens: int, options: PromptOptions) -> None:
    """n_tokens: what the prompt became, special tokens included. Raises ConfigError when the run
    never read so many."""
    limit = lengths(config).inputs
    if n_tokens > limit:
        raise ConfigError(
            f"prompt makes {n_tokens} tokens, and from={options.source} reads at most {limit}",
            f"train.seq_len={config.train.seq_len} of the run",
            f"Leave out {n_tokens - limit} tokens, or train with a longer train.seq_len.",
        )


def _draws(
    run: Trained, model: GenerativeModel, asked: Question, options: GenerateOptions, n_tokens: int
) -> Iterator[Iterable[int]]:
    """One token after the other; of a text after the other, if there are several."""
    shape, greedy = lengths(run.config), options.method_for(run.config) == "greedy"
    for number in range(options.n_samples):
        yield stream(
            model,
            asked.prompt_ids,
            n_tokens,
            source_ids=asked.source_ids,
            eos_id=run.tokenizer.eot_id,
            temperature=0 if greedy else options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            seed=options.seed + number,
            context_limit=shape.inputs if asked.source_ids is None else shape.targets,
        )


def _beams(
    run: Trained, model: GenerativeModel, asked: Question, options: GenerateOptions, n_tokens: int
) -> Iterator[Iterable[int]]:
    """The best hypotheses, best first."""
    if options.n_samples > options.n_beams:
        raise ConfigError(
            f"n_samples={options.n_samples}, and a beam search of n_beams={options.n_beams} finds "
            "no more than that many texts",
            "from the command line",
            f"Use n_beams={options.n_samples}, or method=sample.",
        )
    found = beam_search(
        model,
        asked.prompt_ids,
        n_tokens,
        eos_id=run.tokenizer.eot_id,
        n_beams=options.n_beams,
        length_penalty=options.length_penalty,
        source_ids=asked.source_ids,
    )
    return (hypothesis.tokens for hypothesis in found[: options.n_samples])


def _text(run: Trained, asked: Question, answer: Iterable[int]) -> Iterator[str]:
    return run.tokenizer.decode_stream(text_tokens(run.config, run.tokenizer, asked, answer))


def _spans(run: Trained, asked: Question, answer: Iterable[int]) -> Iterator[str]:
    """A line for each span, as the model gives them, behind the number of its gap; those of no gap
    are left out."""
    assert asked.source_ids is not None
    number_of = {
        token: number
        for number, token in enumerate(run.tokenizer.sentinel_ids, start=1)
        if token in asked.source_ids
    }
    sentinels, begin, gap = set(run.tokenizer.sentinel_ids), "", None
    for are_sentinels, tokens in groupby(answer, lambda token: token in sentinels):
        if are_sentinels:
            for gap in (number_of.get(token) for token in tokens):
                if gap is not None:
                    yield f"{begin}{gap}: "
                    begin = "\n"
        elif gap is not None:
            yield from run.tokenizer.decode_stream(tokens)
