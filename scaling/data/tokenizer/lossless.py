"""Whether a tokenizer that exists gives every text back, and which part of it does not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from scaling.data.tokenizer.byte_level import EOT, Tokenizer, spelt
from scaling.errors import ConfigError

_SPLITTERS = frozenset(
    {"ByteLevel", "Digits", "FixedLength", "Punctuation", "Split", "UnicodeScripts"}
)
"""Pre-tokenizers that cut text and keep all of it, as long as none is told to remove what it cuts
at."""
_COMPOSE = "NFC"
"""The one normaliser that is left out rather than refused: GPT-NeoX, OLMo and Qwen have it, most
text is in that form already, and tokens over bytes need no form at all."""
_SPELLS = "ByteLevel"
"""The normaliser that writes bytes as letters, and keeps all of them."""
_PROBES = (  # the first two have every byte that UTF-8 has
    "".join(map(chr, range(0x250))),
    "".join(
        map(
            chr,
            (
                *range(0x240, 0x800, 0x40),
                *range(0x800, 0xD800, 0x400),
                *range(0x10000, 0x110000, 0x8000),
            ),
        )
    ),
    " leading",
    "trailing ",
    "\t\ttabs\r\n\r\nlines\n",
    "a  b   c    d",
    "  def f():\n        return  1\n",
    " ",
    "\n",
    "HELLO Hello hello",
    "ﬁ Ａ １ ² ½ ℌ …",
    "é e\u0301 \u1100\u1161 Å Å",
    "naïve café Straße İ ı",
    "日本語 中文 한국어 ไทย",
    "🙂👩‍👩‍👧🏽 𝔘 \U0010ffff",
    "\ufeffmark\u200b\u00a0\u3000\u2028\x85",
    "▁a ▁ ##b Ġc </w> <0x0A> <unk> [UNK]",
    "x" * 300,
    "don't we'll 12345 3.14 -- !!!",
    f"a{EOT}b",
    "\x00\x1e",
)


def without_composing(raw: Mapping[str, Any]) -> dict[str, Any] | None:
    """The tokenizer.json without NFC, where no other normaliser loses text; else None."""
    parts = _parts(raw.get("normalizer"))
    kept = [part for part in parts if part["type"] != _COMPOSE]
    if len(kept) == len(parts) or any(part["type"] != _SPELLS for part in kept):
        return None
    return {**raw, "normalizer": {"type": "Sequence", "normalizers": kept} if kept else None}


def check_lossless(raw: Mapping[str, Any], tokenizer: Tokenizer, name: str) -> None:
    """Raise ConfigError for a tokenizer some of whose text cannot be restored, naming the part of
    it that is to blame."""
    if (culprit := next(_culprits(raw), None)) is not None:
        what, fix = culprit
        raise ConfigError(
            f"tokenizer {name} does not give every text back: {what}", "in its tokenizer.json", fix
        )
    probes = [
        *(probe for text in _added(raw) for probe in (text, f" {text} ", f"x{text}x", text + text)),
        *_PROBES,
    ]
    for probe, ids in zip(probes, tokenizer.encode_batch(probes), strict=True):
        found = tokenizer.decode(ids)
        if found != probe:
            raise ConfigError(
                f"tokenizer {name} does not give every text back: {_difference(probe, found)}",
                "in its tokenizer.json",
                "Use one whose vocabulary has all 256 bytes, and whose added tokens are no entries "
                "of other text; or accept that with tokenizer.lossy=allow.",
            )


def _culprits(raw: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What of a tokenizer.json loses text, and what would not."""
    for part in _parts(raw.get("normalizer")):
        if part["type"] not in (_SPELLS, _COMPOSE):  # NFC alone would be left out
            yield (
                f"its normaliser {part['type']} changes text",
                'Use one without a normaliser ("normalizer": null), or train one: tokenizer=bpe.',
            )
    for part in _parts(raw.get("pre_tokenizer")):
        kind = part["type"]
        if kind not in _SPLITTERS or part.get("behavior") == "Removed":
            yield (
                f"its pre-tokenizer {kind} removes or replaces what it cuts at",
                "Use one that cuts by ByteLevel.",
            )
        if part.get("add_prefix_space"):
            yield (
                f"its pre-tokenizer {kind} puts a space before every text (add_prefix_space)",
                'Set "add_prefix_space": false in its pre_tokenizer.',
            )
    model = raw["model"]
    if model.get("dropout"):
        yield (
            f"it drops merges at random (dropout={model['dropout']})",
            'Set "dropout": null in its model.',
        )
    for token in raw.get("added_tokens") or ():
        flags = [flag for flag in ("lstrip", "rstrip") if token.get(flag)]
        if flags and not token["special"]:
            yield (
                f"its added token {token['content']!r} swallows the blanks around it "
                f"({' and '.join(flags)})",
                f'Set "{flags[0]}": false for that token.',
            )


def _parts(section: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """The normalisers or pre-tokenizers of a section, those of sequences one by one."""
    if section is None:
        return []
    inner: Sequence[Mapping[str, Any]] | None = section.get(
        "normalizers", section.get("pretokenizers")
    )
    return [section] if inner is None else [part for each in inner for part in _parts(each)]


def _added(raw: Mapping[str, Any]) -> Iterator[str]:
    """Texts that added tokens stand for, and those of entries of the model with the same
    spelling."""
    for token in raw.get("added_tokens") or ():
        yield token["content"]
        yield spelt(token["content"]).decode("utf-8", "ignore")


def _difference(text: str, found: str) -> str:
    """What differs, from the first character that does."""
    begin = next(
        (i for i, (one, other) in enumerate(zip(text, found, strict=False)) if one != other),
        min(len(text), len(found)),
    )
    return f"{text[begin : begin + 12]!r} comes back as {found[begin : begin + 12]!r}"
