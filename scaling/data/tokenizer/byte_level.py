"""Byte-level tokenizers: text -> token ids and back, without loss.

BPE (Sennrich et al. 2016), WordPiece (Schuster and Nakajima 2012) and Unigram (Kudo 2018), all over
bytes as in Radford et al. 2019, so that none needs an unknown token; trained in
`data/tokenizer/training.py`. The `tokenizers` library runs on all cores unless the environment says
TOKENIZERS_PARALLELISM=false; the result does not depend on that.
"""

from __future__ import annotations

import codecs
import functools
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scaling.config.run_config import TokenizerConfig
from scaling.data.io.fetch import fetch_whole, join
from scaling.data.shards import CorpusIndex
from scaling.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HFTokenizer

EOT = "<|endoftext|>"
ENDS = (EOT, "<|end_of_text|>", "</s>", "<eos>")
"""What an end of text is called in tokenizers of others; ours first."""
SPECIAL = ("pad", "cls", "sep", "mask")
"""Written <|pad|> and so on; with tokenizer.special_tokens=all they follow end-of-text in the
vocabulary, in this order."""
INSIDE = "▁"
"""What WordPiece puts before a piece that does not begin a word; BERT's ## could be text, this is
not in the alphabet."""
MAX_TOKENIZER_BYTES = 256 << 20
"""Largest tokenizer.json. Assumption: several times the largest that are published, of some 35
MB."""


class Tokenizer:
    """A trained tokenizer. `eot_id` separates documents; the text "<|endoftext|>" itself is encoded
    like any other."""

    def __init__(self, hf: HFTokenizer) -> None:
        hf.encode_special_tokens = True
        self._hf = hf
        ends = [end for end in ENDS if hf.token_to_id(end) is not None]
        if not ends:
            raise ValueError(f"it has no token {' or '.join(ENDS)}")
        self.eot: str = ends[0]
        eot_id = hf.token_to_id(self.eot)
        assert eot_id is not None  # as found above
        self.eot_id: int = eot_id
        self.vocab_size: int = hf.get_vocab_size()

    def special(self, name: str) -> int:
        """Id of pad, cls, sep or mask, as we or BERT and T5 spell them. Raises DataError when the
        vocabulary was made without it."""
        for spelling in (f"<|{name}|>", f"[{name.upper()}]", f"<{name}>"):
            if (token_id := self._hf.token_to_id(spelling)) is not None:
                return int(token_id)
        raise DataError(
            f"the tokenizer has no token <|{name}|>",
            fix="Prepare the text with tokenizer.special_tokens=all.",
        )

    @functools.cached_property
    def sentinel_ids(self) -> list[int]:
        """Ids of the tokens that stand for the first, second, ... hidden span."""
        ids: list[int] = []
        while (token_id := self._hf.token_to_id(sentinel(len(ids)))) is not None:
            ids.append(token_id)
        return ids

    @functools.cached_property
    def ordinary_ids(self) -> np.ndarray:
        """Ids of all that stands for text, int64 ascending."""
        return np.array(
            [i for i in range(self.vocab_size) if i not in self._special_ids], dtype=np.int64
        )

    @functools.cached_property
    def _special_ids(self) -> frozenset[int]:
        """Ids that stand for no text. Added tokens need not be special: runs of blanks in
        GPT-NeoX's are text."""
        return frozenset(
            i for i, token in self._hf.get_added_tokens_decoder().items() if token.special
        )

    @functools.cached_property
    def is_bytes(self) -> bool:
        """Whether token i is byte i, and there are no other tokens for text."""
        return len(self.ordinary_ids) == 256 and self._bytes[:256] == [
            bytes([i]) for i in range(256)
        ]

    @property
    def kind(self) -> str:
        """bpe (bytes alone too), wordpiece or unigram."""
        return type(self._hf.model).__name__.lower()

    @functools.cached_property
    def begins_word(self) -> np.ndarray:
        """Whether each token of a WordPiece vocabulary begins a word; bool of length vocab_size."""
        return np.array(
            [not (self._hf.id_to_token(i) or "").startswith(INSIDE) for i in range(self.vocab_size)]
        )

    @classmethod
    def from_bytes(cls, content: bytes) -> Tokenizer:
        """Read what `save` or `to_bytes` wrote. Raises ValueError when it is something else."""
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
        return b"".join(self.bytes_of(int(i)) for i in ids).decode("utf-8", "replace")

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of `decode`, in pieces: each character as soon as the last of its bytes is
        there."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token_id in ids:
            if text := decoder.decode(self.bytes_of(token_id)):
                yield text
        if text := decoder.decode(b"", final=True):
            yield text

    def bytes_of(self, token_id: int) -> bytes:
        """What a token stands for: part of a character, or many; nothing for special tokens and ids
        beyond the vocabulary."""
        return self._bytes[token_id] if token_id < self.vocab_size else b""

    @functools.cached_property
    def _bytes(self) -> list[bytes]:
        """Entries of the model are written in the alphabet of bytes, added tokens as the text that
        they match."""
        added = self._hf.get_added_tokens_decoder()
        inside = INSIDE if self.kind == "wordpiece" else ""

        def stands_for(i: int) -> bytes:
            if i in added:
                return b"" if added[i].special else added[i].content.encode()
            return spelt((self._hf.id_to_token(i) or "").removeprefix(inside))

        return [stands_for(i) for i in range(self.vocab_size)]

    @functools.cached_property
    def text_entries(self) -> tuple[str, ...]:
        """Added tokens that stand for text; they are looked for before the text is split into
        words."""
        added = self._hf.get_added_tokens_decoder()
        return tuple(token.content for _, token in sorted(added.items()) if not token.special)

    @functools.cached_property
    def token_bytes(self) -> np.ndarray:
        """UTF-8 bytes that each token stands for, int32 of length vocab_size; 0 for special
        tokens."""
        return np.array([len(piece) for piece in self._bytes], dtype=np.int32)

    def to_bytes(self) -> bytes:
        """What `from_bytes` reads."""
        return (self._hf.to_str(pretty=False) + "\n").encode()

    def save(self, path: Path) -> None:
        path.write_bytes(self.to_bytes())


def load_tokenizer(directory: str | Path, index: CorpusIndex) -> Tokenizer:
    """The tokenizer beside the shards of a corpus, in a directory or behind a URL. Raises DataError
    if it is another one."""
    info, location = index.tokenizer, join(directory, index.tokenizer.file)
    content = fetch_whole(location, MAX_TOKENIZER_BYTES)
    fix = "Prepare the corpus again, or copy the file again."
    found = hashlib.sha256(content).hexdigest()
    if found != info.sha256:
        raise DataError(
            f"{location} has sha256 {found[:16]}, and the index says {info.sha256[:16]}", fix=fix
        )
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


def sentinel(number: int) -> str:
    """The token that stands for hidden span `number`, from 0."""
    return f"<|span_{number}|>"


def special_tokens(config: TokenizerConfig) -> list[str]:
    """End-of-text and what else the configuration asks for, in the order of the vocabulary; nothing
    where the tokenizer's own are to do."""
    if config.special_tokens == "own":
        return []
    others = [f"<|{name}|>" for name in SPECIAL] if config.special_tokens == "all" else []
    return [EOT, *others, *(sentinel(number) for number in range(config.n_sentinels))]


def alphabet() -> list[str]:
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def spelt(piece: str) -> bytes:
    """The bytes of an entry; those of the text itself where it is not written in the alphabet,
    which no text gives."""
    byte_of = _bytes_of_letters()
    return (
        bytes(byte_of[char] for char in piece)
        if all(char in byte_of for char in piece)
        else piece.encode()
    )


@functools.cache
def _bytes_of_letters() -> dict[str, int]:
    return {char: byte for byte, char in enumerate(byte_alphabet())}


def byte_alphabet() -> list[str]:
    """The printable character that stands for each byte: itself where it is one, else the next from
    U+0100 on (GPT-2)."""
    characters = alphabet()
    printable = {ord(char) for char in characters if ord(char) < 256}
    others = iter(char for char in characters if ord(char) >= 256)
    return [chr(byte) if byte in printable else next(others) for byte in range(256)]
