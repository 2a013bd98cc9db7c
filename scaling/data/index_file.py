"""index.json as a stranger may have written it: read with a bound, every value checked, and sealed
against changes.

A seal is a SHA-256 over values in canonical JSON. Each shard's entry has one, and so has the index
as a whole. Indexes that were written before there were seals have none, and are read all the same.
"""

from __future__ import annotations

import hashlib
import json
import re
import reprlib
from collections.abc import Mapping
from typing import Any

from scaling.data.io.fetch import fetch_whole
from scaling.errors import DataError

MAX_INDEX_BYTES = 256 << 20
"""Largest index or list of corpora. Assumption: a million shards, at some 250 bytes an entry, and
no more."""
LARGEST_COUNT = 2**53
"""Largest count of tokens, documents or bytes, also in sum: what JSON numbers hold exactly, and
int64 with room to spare."""

_COUNTS = ("nsamples", "filesize", "n_tokens", "n_bytes")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def read_json(location: str, what: str, fix: str) -> dict[str, Any]:
    """The JSON object in a file. Raises DataError for a longer file, another content, or one that
    cannot be read."""
    content = fetch_whole(location, MAX_INDEX_BYTES)
    try:
        return an_object(json.loads(content), "it")
    except (ValueError, RecursionError) as error:
        reason = (
            "its brackets are nested too deeply"
            if isinstance(error, RecursionError)
            else str(error)
        )
        raise DataError(f"{location} is not {what}: {reason}", fix=fix) from error


def seal_of(values: Any) -> str:
    return hashlib.sha256(
        json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()


def check_seals(data: Mapping[str, Any]) -> None:
    """Compare an index with its seals, where it has them. Raises ValueError that names what was
    changed."""
    for split, entry in data["splits"].items():
        for shard in entry["shardlist"]:
            if "seal" in shard and shard["seal"] != seal_of(_unsealed(shard)):
                values = ", ".join(
                    f"{key}={shown(value)}"
                    for key, value in shard.items()
                    if key not in ("seal", "sha256", "url")
                )
                raise ValueError(
                    f"the entry of shard {shown(shard.get('url'))} of split {split} was "
                    f"changed: {values}"
                )
    if "seal" in data and data["seal"] != seal_of(_unsealed(data)):
        raise ValueError(
            "it was changed after it was written: its tokenizer, its dtype, its name or its "
            "list of shards"
        )


def _unsealed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != "seal"}


def an_object(value: Any, what: str) -> dict[str, Any]:
    """Raises ValueError for anything but a JSON object."""
    if not isinstance(value, dict):
        raise ValueError(f"{what} is {shown(value)}, not an object")
    return value


def a_list(value: Any, what: str) -> list[Any]:
    """Raises ValueError for anything but a JSON list."""
    if not isinstance(value, list):
        raise ValueError(f"{what} is {shown(value)}, not a list")
    return value


def count(entry: Mapping[str, Any], key: str, largest: int = LARGEST_COUNT) -> int:
    """A whole number from 0 on. Raises ValueError, also for true and 1.0; KeyError where there is
    none."""
    value = entry[key]
    if type(value) is not int or not 0 <= value <= largest:
        raise ValueError(
            f"{key}={shown(value)} is no count: a whole number from 0 to {largest} is wanted"
        )
    return value


def text(entry: Mapping[str, Any], key: str) -> str:
    """Text of one line without control characters. Raises ValueError, KeyError."""
    value = entry[key]
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError(f"{key} is {shown(value)}, not text of one line")
    return value


def file_name(entry: Mapping[str, Any], key: str) -> str:
    """The name of a file beside the index, and no path. Raises ValueError, KeyError."""
    value = entry[key]
    if not isinstance(value, str) or not _FILE_NAME.fullmatch(value):
        raise ValueError(f"{shown(value)} is not the plain name of a file in the same directory")
    return value


def sha256(entry: Mapping[str, Any], key: str = "sha256") -> str:
    """Raises ValueError for anything but 64 hexadecimal digits; KeyError where there is none."""
    value = entry[key]
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise ValueError(f"{key} is {shown(value)}, not 64 hexadecimal digits")
    return value


def shown(value: Any) -> str:
    """A stranger's value in a message: short, and on one line."""
    return reprlib.repr(value)
