"""Byte-level tokenizers learnt from text: what each kind sets in the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from scaling.config.run_config import TokenizerConfig
from scaling.data.tokenizer.byte_level import (
    INSIDE,
    Tokenizer,
    alphabet,
    byte_alphabet,
    special_tokens,
)
from scaling.errors import ConfigError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HFTokenizer

LONGEST_WORD = 64
"""Bytes of a word; longer ones are cut, since WordPiece's time grows with the square.
Assumption."""


def train_tokenizer(config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
    """Learn the vocabulary from texts. Raises ConfigError when they are too few for it.

    The same texts give the same one, except for unigram: the library's trainer sums in an order
    that changes from one process to the next, so a corpus that two machines must share is prepared
    once and copied. Special tokens come first in the vocabulary; with kind=byte last, so that token
    i is byte i.
    """
    if config.kind == "byte":
        return _byte_tokenizer(config)
    hf, trainer = {"bpe": _bpe, "wordpiece": _wordpiece_pieces, "unigram": _unigram}[config.kind](
        config
    )
    hf.train_from_iterator(texts, trainer)
    found = hf.get_vocab_size()
    if found != config.vocab_size:
        raise ConfigError(
            f"the text is too short for tokenizer.vocab_size={config.vocab_size}: merging all "
            f"of it gives {found} entries",
            fix=f"Use tokenizer.vocab_size={found} or less, tokenizer=byte, or more text.",
        )
    return Tokenizer(_wordpiece(hf.get_vocab(), config) if config.kind == "wordpiece" else hf)


def _bpe(config: TokenizerConfig) -> tuple[HFTokenizer, Any]:
    from tokenizers import Tokenizer as HFTokenizer
    from tokenizers import decoders, models, pre_tokenizers, trainers

    hf = HFTokenizer(models.BPE())
    hf.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    hf.decoder = decoders.ByteLevel()
    return hf, trainers.BpeTrainer(**_training(config), initial_alphabet=alphabet())


def _wordpiece_pieces(config: TokenizerConfig) -> tuple[HFTokenizer, Any]:
    """What learns the pieces.

    Every byte inside a word is given beforehand, as if it were special: the trainer would add those
    that it meets, in an order that changes from one process to the next, and ties are decided by
    that order.
    """
    from tokenizers import Tokenizer as HFTokenizer
    from tokenizers import models, trainers

    hf = HFTokenizer(models.WordPiece(continuing_subword_prefix=INSIDE))
    hf.pre_tokenizer = _short_words()
    training = _training(config)
    training["special_tokens"] += [INSIDE + byte for byte in alphabet()]
    return hf, trainers.WordPieceTrainer(
        **training, initial_alphabet=alphabet(), continuing_subword_prefix=INSIDE
    )


def _wordpiece(vocab: dict[str, int], config: TokenizerConfig) -> HFTokenizer:
    """The tokenizer of learnt pieces, in which only the special tokens are special."""
    from tokenizers import AddedToken, decoders, models
    from tokenizers import Tokenizer as HFTokenizer

    hf = HFTokenizer(
        models.WordPiece(
            vocab=vocab, max_input_chars_per_word=LONGEST_WORD, continuing_subword_prefix=INSIDE
        )
    )
    hf.pre_tokenizer = _short_words()
    hf.decoder = decoders.Sequence([decoders.Replace(INSIDE, ""), decoders.ByteLevel()])
    hf.add_special_tokens([AddedToken(token, special=True) for token in special_tokens(config)])
    return hf


def _short_words() -> Any:
    from tokenizers import pre_tokenizers

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return pre_tokenizers.Sequence([byte_level, pre_tokenizers.FixedLength(length=LONGEST_WORD)])


def _unigram(config: TokenizerConfig) -> tuple[HFTokenizer, Any]:
    from tokenizers import Tokenizer as HFTokenizer
    from tokenizers import decoders, models, pre_tokenizers, trainers

    hf = HFTokenizer(models.Unigram())
    hf.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    hf.decoder = decoders.ByteLevel()
    return hf, trainers.UnigramTrainer(**_training(config), initial_alphabet=alphabet())


def _training(config: TokenizerConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "special_tokens": special_tokens(config),
        "show_progress": False,
    }


def _byte_tokenizer(config: TokenizerConfig) -> Tokenizer:
    """Token i is byte i; end-of-text is 256, and other special tokens follow it."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as HFTokenizer

    hf = HFTokenizer(
        models.BPE(vocab={char: byte for byte, char in enumerate(byte_alphabet())}, merges=[])
    )
    hf.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    hf.decoder = decoders.ByteLevel()
    hf.add_special_tokens([AddedToken(token, special=True) for token in special_tokens(config)])
    return Tokenizer(hf)
