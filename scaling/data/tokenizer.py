"""Byte-level tokenizers: text -> token ids and back, without loss.

BPE after Sennrich et al. 2016 over bytes as in Radford et al. 2019, trained by the `tokenizers` library. It runs on all
cores unless the environment says TOKENIZERS_PARALLELISM=false; the result does not depend on that.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scaling.config import TokenizerConfig
from scaling.data.fetch import fetch, join
from scaling.data.shards import CorpusIndex
from scaling.errors import ConfigError, DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HFTokenizer

EOT = "<|endoftext|>"


class Tokenizer:
    """A trained tokenizer. `eot_id` separates documents; the text "<|endoftext|>" itself is encoded like any other."""

    def __init__(self, hf: HFTokenizer) -> None:
        hf.encode_special_tokens = True
        self._hf = hf
        eot_id = hf.token_to_id(EOT)
        if eot_id is None:
            raise ValueError(f"it has no token {EOT}")
        self.eot_id: int = eot_id
        self.vocab_size: int = hf.get_vocab_size()

    @classmethod
    def from_bytes(cls, content: bytes) -> Tokenizer:
        """Read what `save` wrote. Raises ValueError when it is something else."""
        from tokenizers import Tokenizer as HFTokenizer

        try:
            return cls(HFTokenizer.from_buffer(content))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(str(error)) from error

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each text, int64; nothing is added before or after."""
        encodings = self._hf.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of token ids, special tokens left out; bytes that are not UTF-8 become U+FFFD."""
        return self._hf.decode([int(i) for i in ids], skip_special_tokens=True)

    @functools.cached_property
    def token_bytes(self) -> np.ndarray:
        """UTF-8 bytes that each token stands for, int32 of length vocab_size; 0 for special tokens."""
        special = self._hf.get_added_tokens_decoder()
        # A character of the byte-level alphabet stands for one byte.
        lengths = [0 if i in special else len(self._hf.id_to_token(i) or "") for i in range(self.vocab_size)]
        return np.array(lengths, dtype=np.int32)

    def save(self, path: Path) -> None:
        path.write_text(self._hf.to_str(pretty=False) + "\n", encoding="utf-8")


def load_tokenizer(directory: str | Path, index: CorpusIndex) -> Tokenizer:
    """The tokenizer beside the shards of a corpus, in a directory or behind a URL. Raises DataError if it is another one."""
    info, location = index.tokenizer, join(directory, index.tokenizer.file)
    content = fetch(location)
    fix = "Prepare the corpus again, or copy the file anew."
    found = hashlib.sha256(content).hexdigest()
    if found != info.sha256:
        raise DataError(f"{location} has sha256 {found[:16]}, and the index says {info.sha256[:16]}", fix=fix)
    try:
        tokenizer = Tokenizer.from_bytes(content)
    except ValueError as error:
        raise DataError(f"{location} is not a tokenizer: {error}", fix=fix) from error
    if (tokenizer.vocab_size, tokenizer.eot_id) != (info.vocab_size, info.eot_id):
        raise DataError(
            f"{location} has {tokenizer.vocab_size} entries and end-of-text {tokenizer.eot_id}, "
            f"and the index says {info.vocab_size} and {info.eot_id}",
            fix=fix,
        )
    return tokenizer


def train_tokenizer(config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
    """Learn the vocabulary from texts; the same texts give the same one. Raises ConfigError when they are too few for it."""
    return _byte_tokenizer() if config.kind == "byte" else _train_bpe(config.vocab_size, texts)


def _train_bpe(vocab_size: int, texts: Iterable[str]) -> Tokenizer:
    from tokenizers import Tokenizer as HFTokenizer
    from tokenizers import decoders, models, pre_tokenizers, trainers

    hf = HFTokenizer(models.BPE())
    hf.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    hf.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    hf.train_from_iterator(texts, trainer)
    found = hf.get_vocab_size()
    if found != vocab_size:
        raise ConfigError(
            f"the text is too short for tokenizer.vocab_size={vocab_size}: merging all of it gives {found} entries",
            fix=f"Use tokenizer.vocab_size={found} or less, tokenizer=byte, or more text.",
        )
    return Tokenizer(hf)


def _byte_tokenizer() -> Tokenizer:
    """Token i is byte i; end-of-text is 256."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as HFTokenizer

    hf = HFTokenizer(models.BPE(vocab={char: byte for byte, char in enumerate(_byte_alphabet())}, merges=[]))
    hf.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    hf.decoder = decoders.ByteLevel()
    hf.add_special_tokens([AddedToken(EOT, special=True)])
    return Tokenizer(hf)


def _byte_alphabet() -> list[str]:
    """The printable character that stands for each byte: itself where it is one, else the next from U+0100 on (GPT-2)."""
    from tokenizers import pre_tokenizers

    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    printable = {ord(char) for char in characters if ord(char) < 256}
    others = iter(char for char in characters if ord(char) >= 256)
    return [chr(byte) if byte in printable else next(others) for byte in range(256)]
