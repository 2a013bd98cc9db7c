"""A source of one document, which has a train and a held-out part all the same: its beginning and
its end."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scaling.data.prepare.ordering import Bucket, Document, read_documents, write_documents

_NEAR_BYTES = 1 << 16
"""Range in which the end of a line or word is searched. Assumption: longer ones are no words."""


def cut_in_two(directory: Path, name: str, bucket: str, val_fraction: float) -> dict[str, Any]:
    """Task: a bucket of the only document as one of two, the last `val_fraction` of its bytes held
    out."""
    (content,) = read_documents(directory, bucket)
    at = cut_before(content, len(content) - max(1, round(val_fraction * len(content))))
    parts = [part for part in (content[at:], content[:at]) if part]
    documents = [
        Document(hashlib.sha256(part).digest(), part, number == 0)
        for number, part in enumerate(parts)
    ]
    n_bytes = write_documents(documents, directory, name)
    return asdict(Bucket(name, len(parts), n_held_out=1, n_low=1, n_bytes=n_bytes))


def cut_before(content: bytes, at: int) -> int:
    """The nearest place before byte `at` of a text where a line ends, else a word, else a
    character; 0 where there is none."""
    start = max(0, at - _NEAR_BYTES)
    for end in (b"\n", b" "):
        if (found := content.rfind(end, start, at)) >= 0:
            return found + 1
    while 0 < at < len(content) and content[at] & 0xC0 == 0x80:  # inside of a character of UTF-8
        at -= 1
    return at
