"""Task: the documents of a bucket -> their tokens in one file, and the length of each."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scaling.data.prepare.ordering import read_documents
from scaling.data.prepare.sources import BETWEEN
from scaling.data.prepare.tasks import put_array, synced
from scaling.data.tokenizer.byte_level import Tokenizer

BATCH_BYTES = 1 << 20
"""Text encoded at once. Assumption: enough to occupy the tokenizer's threads, little enough for
what it takes meanwhile."""
_WORD_ENDS = re.compile(r"[^\W\d_](?= )")


def encode_bucket(
    directory: Path, name: str, bucket: str, tokenizer_file: str, pairs: bool
) -> dict[str, Any]:
    """NAME.ids, raw and little-endian, and NAME.npy: tokens and bytes of each document, int64 of
    shape (n, 2)."""
    tokenizer = _load(str(directory / tokenizer_file))
    dtype = "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"
    lengths: list[tuple[int, int]] = []
    with synced(directory / f"{name}.ids") as file:
        for batch in _batches(read_documents(directory, bucket)):
            for content, ids in zip(batch, _encode(tokenizer, batch, pairs), strict=True):
                file.write(ids.astype(np.dtype(dtype).newbyteorder("<")).tobytes())
                lengths.append((len(ids), len(content)))
    put_array(directory / f"{name}.npy", np.array(lengths, dtype=np.int64).reshape(-1, 2))
    return {"n_tokens": sum(n_tokens + 1 for n_tokens, _ in lengths), "dtype": dtype}


@functools.lru_cache(maxsize=1)
def _load(path: str) -> Tokenizer:
    return Tokenizer.from_bytes(Path(path).read_bytes())


def _batches(contents: Iterator[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    size = 0
    for content in contents:
        batch.append(content)
        size += len(content)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode(tokenizer: Tokenizer, contents: Sequence[bytes], pairs: bool) -> list[np.ndarray]:
    """Token ids of each document; of a pair: source, separator, target."""
    if not pairs:
        return _encode_texts(tokenizer, contents)
    separator = [tokenizer.special("sep")]
    sides = _encode_texts(
        tokenizer, [side for pair in contents for side in pair.split(BETWEEN.encode())]
    )
    return [
        np.concatenate([one, separator, other])
        for one, other in zip(sides[::2], sides[1::2], strict=True)
    ]


def _encode_texts(tokenizer: Tokenizer, contents: Sequence[bytes]) -> list[np.ndarray]:
    if tokenizer.is_bytes:
        return [np.frombuffer(content, dtype=np.uint8) for content in contents]
    # one of them is large: each for itself
    if len(contents) > 1 and sum(map(len, contents)) > 2 * BATCH_BYTES:
        return [ids for content in contents for ids in _encode_texts(tokenizer, [content])]
    if (
        len(contents) == 1
        and len(contents[0]) > 2 * BATCH_BYTES
        and not any(map(_WORD_ENDS.search, tokenizer.text_entries))
    ):
        parts = [
            tokenizer.encode_batch([part])[0] for part in cut(contents[0].decode(), BATCH_BYTES)
        ]
        return [np.concatenate(parts)]
    return tokenizer.encode_batch([content.decode() for content in contents])


def cut(text: str, length: int) -> Iterator[str]:
    """Parts of about `length` characters whose tokens, joined, are those of the whole text.

    Tokenizers over bytes split text into words before anything else, and all end a word between a
    letter and a blank; an added token that has such an end inside forbids it.
    """
    begin = 0
    while (found := _WORD_ENDS.search(text, begin + length)) is not None:
        yield text[begin : found.end()]
        begin = found.end()
    if begin < len(text):
        yield text[begin:]
