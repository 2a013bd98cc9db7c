"""A tokenizer that exists, from a file or the Hugging Face hub, made fit for a corpus."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from scaling.config.paths import plain
from scaling.config.run_config import TokenizerConfig
from scaling.data.prepare.tasks import Report
from scaling.data.tokenizer.byte_level import Tokenizer, special_tokens
from scaling.data.tokenizer.lossless import check_lossless, without_composing
from scaling.errors import ConfigError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HFTokenizer

_KINDS = ("bpe", "wordpiece", "unigram")
_TIMEOUT_S = 10.0  # assumption: a hub that says nothing for so long cannot be reached


def hub_tokenizer(name: str, config: TokenizerConfig, report: Report | None = None) -> Tokenizer:
    """The tokenizer at a path (tokenizer.json or its directory) or of that name on the hub.

    Special tokens that it lacks (end-of-text, and what `config` asks for) are added behind its own.
    Raises ConfigError for one that cannot be had, for one that does not give every text back, and
    for another number of entries. `report` is told what is left out of it.
    """
    path = _file(name)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}", f"tokenizer=hf:{name}") from error
    tokenizer = existing_tokenizer(content, name, config, report)
    if config.kind == "hf" and tokenizer.vocab_size != config.vocab_size:
        raise ConfigError(
            f"tokenizer {name} has {tokenizer.vocab_size} entries with its special tokens, and "
            f"tokenizer.vocab_size={config.vocab_size}",
            fix=f"Set tokenizer.vocab_size={tokenizer.vocab_size}.",
        )
    return tokenizer


def existing_tokenizer(
    content: bytes, name: str, config: TokenizerConfig, report: Report | None = None
) -> Tokenizer:
    """A tokenizer from the content of a tokenizer.json, with what `config` asks for; raises as
    `hub_tokenizer`."""
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as HFTokenizer

    try:
        text = content.decode(json.detect_encoding(content))  # which tells a byte order mark
        raw = json.loads(text)
        if (composed := without_composing(raw)) is not None:
            raw, text = composed, json.dumps(composed)
            if report is not None:
                report(
                    f"tokenizer {name}: its normaliser NFC is left out, so that every text comes "
                    "back as it was",
                    None,
                )
        hf = HFTokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception
        raise ConfigError(
            f"{name} is not a tokenizer: {error}", f"tokenizer=hf:{name}", "Give a tokenizer.json."
        ) from error
    _check(hf, name)
    hf.no_truncation()
    hf.no_padding()
    hf.add_special_tokens([AddedToken(token, special=True) for token in special_tokens(config)])
    try:
        tokenizer = Tokenizer(hf)
    except ValueError as error:
        fix = "Use tokenizer.special_tokens=eot, which adds an end-of-text token."
        raise ConfigError(f"tokenizer {name}: {error}", fix=fix) from error
    largest = max(hf.get_vocab().values())
    if largest >= tokenizer.vocab_size:
        raise ConfigError(
            f"tokenizer {name} has gaps: {tokenizer.vocab_size} entries, and the largest id is "
            f"{largest}",
            fix="Use one whose ids are 0 to one less than the number of its entries.",
        )
    if config.lossy == "refuse":
        check_lossless(raw, tokenizer, name)
    return tokenizer


def _check(hf: HFTokenizer, name: str) -> None:
    kind = type(hf.model).__name__.lower()
    fix = (
        "Use one over bytes, as those of GPT-2 and Llama 3 are, "
        f"or train one: tokenizer={' or '.join(_KINDS)}."
    )
    if kind not in _KINDS:
        raise ConfigError(
            f"tokenizer {name} is of kind {kind}, and only {', '.join(_KINDS)} are read", fix=fix
        )
    # as the tokens of T5 and Llama 2, with their byte fallback
    if "ByteLevel" not in repr(hf.decoder):
        raise ConfigError(
            f"the tokens of {name} are not of bytes, so that not every text can be restored",
            fix=fix,
        )


def _file(name: str) -> Path:
    """tokenizer.json of a path or a name. Raises ConfigError when there is none or the hub cannot
    be reached."""
    path = Path(plain(name))
    if path.is_dir():
        path /= "tokenizer.json"
    if path.is_file():
        return path
    where = f"tokenizer=hf:{name}"
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise ConfigError(
            f"there is no file {path}, and no huggingface_hub to fetch it", where, "Give a file."
        ) from error
    try:
        return Path(hf_hub_download(name, "tokenizer.json", etag_timeout=_TIMEOUT_S))
    # of the hub, of the network, of the name: whatever it is, there is no tokenizer
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise ConfigError(
            f"there is no file {path}, and the hub gives no tokenizer.json of that name: "
            f"{type(error).__name__}: {reason[0] if reason else 'no reason given'}",
            where,
            "Check the name and the network, or copy the tokenizer.json and give its path.",
        ) from error
